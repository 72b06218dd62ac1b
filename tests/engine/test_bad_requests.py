"""What fdpp.LLM says of requests that it cannot answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fdpp.engine.sampling_options import SamplingOptions
from fdpp.errors import FdppError, RequestError
from fdpp.llm import LLM
from tests.engine.models import VOCAB


@pytest.fixture(scope="module")
def llama(checkpoints):
    return LLM(checkpoints("llama")[0], dtype="float32")


@pytest.mark.parametrize(
    "prompts",
    ["", [], [[]], ["fine", ""], None, 7, [1, "a"], [[1.5]], [-1], [VOCAB], [[5], [VOCAB]], ["\ud800"], [True, 3],
     b"ab"],
    ids=repr,
)  # fmt: skip
def test_bad_prompts(llama, prompts):
    with pytest.raises(RequestError) as caught:
        llama.generate(prompts, max_new_tokens=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (np.linspace(0, 1, 60), "got float64|got 0.0"),
        (np.array(5), "got ndarray array"),
        (np.array([[True] * 60]), "got True"),
        (np.zeros((3, 0), dtype=int), r"not empty, got \[\]"),
        (np.arange(900).reshape(3, 300, 1), r"got \[0\]"),
        (torch.full((1, 60), VOCAB), f"got {VOCAB}"),
        ({"input_ids": [5, 6]}, "got {'input_ids'"),
        (object(), "got object <object"),
    ],
)
def test_messages_name_the_type_of_what_came_in_one_line(llama, prompt, said):
    with pytest.raises(RequestError, match=said) as caught:
        llama.generate(prompt, max_new_tokens=1)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": -1},
        {"max_new_tokens": 1.5},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_p": float("inf")},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"n": 0},
        {"n": 1 << 40},
        {"logprobs": -1},
        {"logprobs": VOCAB + 1},
        {"stop_token_ids": [VOCAB]},
        {"stop_token_ids": 3},
        {"stop_token_ids": [True]},
        {"sampling": 3},
        {"sampling": []},
        {"sampling": [SamplingOptions()] * 2},
        {"sampling": [None]},
        {"sampling": SamplingOptions(), "temperature": 1.0},
        {"top_k": -1},
        {"top_k": 2.0},
        {"seed": -1},
        {"seed": 1 << 63},
        {"stop": ""},
        {"stop": [""]},
        {"stop": [3]},
        {"stop": 3},
    ],
    ids=repr,
)
def test_bad_options(llama, options):
    with pytest.raises(RequestError) as caught:
        llama.generate([5, 6], **({"max_new_tokens": 1} | options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"device": "cuda:77"},
        {"device": "nonsense"},
        {"dtype": "int8"},
        {"dtype": torch.int8},
        {"dtype": 5},
        {"max_seq_len": 0},
        {"max_batch_size": 0},
        {"page_size": 0},
        {"num_threads": 0},
        {"num_threads": True},
        {"num_threads": 10**6},
        {"num_threads": 10**30},
    ],
    ids=repr,
)
def test_bad_arguments(checkpoints, options):
    with pytest.raises(RequestError):
        LLM(checkpoints("llama")[0], **options)


def test_a_gpu_takes_narrow_dtypes_only(checkpoints, monkeypatch):
    monkeypatch.setattr("fdpp.llm._device", lambda device: torch.device("cuda:0"))
    with pytest.raises(RequestError, match="expected bfloat16 or float16 on a GPU, got float32"):
        LLM(checkpoints("llama")[0], device="cuda", dtype="float32")


def test_a_device_that_has_no_operators(checkpoints):
    with pytest.raises(RequestError, match="expected cpu or cuda"):
        LLM(checkpoints("llama")[0], device="meta")


def test_absurd_cache_is_refused(checkpoints, monkeypatch):
    llm = LLM(checkpoints("llama")[0])
    monkeypatch.setattr("fdpp.engine.kv_cache.memory_bytes", lambda device: 1 << 20)
    with pytest.raises(RequestError, match="key/value cache of 5 x 512 tokens needs"):
        llm.generate([[5, 6, 7]] * 5, max_new_tokens=10**9)


def test_logits_that_are_not_finite(checkpoints):
    llm = LLM(checkpoints("llama")[0], dtype="float32")
    llm.model.blocks[1].mlp.down.weight.tensor[3, 4] = torch.nan
    with pytest.raises(FdppError, match="not finite"):
        llm.generate([[5, 6, 7]] * 5, max_new_tokens=5)


@pytest.mark.parametrize(
    "messages",
    [[], "hello", [{"role": "user"}], [{"role": "judge", "content": "x"}], ["x"], [{"role": "user", "content": 5}]],
    ids=repr,
)
def test_bad_messages(llama, messages):
    with pytest.raises(RequestError):
        llama.chat(messages)
