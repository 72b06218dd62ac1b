"""A tiny model, end to end with the kernels of every kind of GPU: the CPU's tokens, logits near those of float32."""

from __future__ import annotations

import copy
import functools

import pytest
import torch

from fdpp.llm import LLM
from tests.engine.gguf_writer import write_gguf
from tests.engine.helpers import forced_logits, load_on, reference_logits
from tests.engine.models import OWN_NAMES, VOCAB, tiny_model
from tests.engine.test_stored_weights import mixed
from tests.ops.backends import BACKENDS

PROMPTS = [[5, 6, 7], list(range(20, 41)), [9], [200, 100, 50, 25], list(range(5, 12))]
#: What the rounding of a dtype makes of the logits, as a share of their norm.
NEAR = {"bfloat16": 1e-1, "float16": 1e-2}


@pytest.fixture(params=[backend for backend in BACKENDS if backend.name != "cpu"], ids=str)
def load(request, monkeypatch):
    """LLM on a GPU, or with the kernels of a kind of GPU, as the host executes them, in place of those of the CPU."""

    return functools.partial(load_on, request.param, monkeypatch)


@pytest.mark.parametrize("page_size", [None, 8])
@pytest.mark.parametrize("dtype", NEAR)
def test_the_tokens_of_the_cpu(checkpoints, load, dtype, page_size):
    path, _ = checkpoints("llama")
    options = {"dtype": dtype, "page_size": page_size}
    cpu = LLM(path, **options)
    theirs = cpu.generate(PROMPTS, max_new_tokens=6, ignore_eos=True)
    ours = load(path, **options).generate(PROMPTS, max_new_tokens=6, ignore_eos=True)
    for prompt, mine, expected in zip(PROMPTS, ours, theirs, strict=True):
        pairs = zip(mine.token_ids, expected.token_ids, strict=True)
        first = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if first is None:
            continue
        # Where two tokens are as likely, rounding decides. A GPU's library rounds otherwise than the CPU's.
        ids = [*prompt, *expected.token_ids[:first]]
        (logits,) = forced_logits(cpu, [ids], (len(ids),), page=page_size)
        gap = logits[-1, expected.token_ids[first]] - logits[-1, mine.token_ids[first]]
        assert gap < NEAR[dtype] * logits[-1].abs().max(), f"token {first} of {prompt}"


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("variant", ["llama-biased", "mistral-window", "qwen3", "qwen3-wide", *OWN_NAMES])
def test_logits_near_those_of_transformers(checkpoints, load, variant, dtype):
    path, model = checkpoints(variant)
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in (24, 5, 19)]
    prefill = (20, 1, 17)
    ours = forced_logits(load(path, dtype=dtype), sequences, prefill, page=8)
    for ids, count, logits in zip(sequences, prefill, ours, strict=True):
        expected = reference_logits(model, ids)[count - 1 :]
        error = (logits - expected).norm() / expected.norm()
        # Some random models spread rounding more than others: that of transformers in the same dtype counts, too.
        assert error < NEAR[dtype] or error < 1.5 * rounding(model, dtype, ids, expected)


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("variant", ["llama-tied", "qwen3", "gpt-neox", "phi3", "gemma2-llama.cpp"])
def test_stored_weights(tmp_path, load, variant, dtype):
    """The very values of a file of several types; a prompt of more than 64 tokens unpacks them."""
    model = tiny_model(variant)
    write_gguf(tmp_path / "model.gguf", model, mixed)
    ids = torch.randint(3, VOCAB, (90,), generator=torch.Generator().manual_seed(1)).tolist()
    llm = load(tmp_path / "model.gguf", dtype=dtype)
    assert all((weight.packing is not None) == weight.is_matrix for weight in llm.model.weights())
    (logits,) = forced_logits(llm, [ids], [70], page=8)
    expected = reference_logits(model, ids)[69:]
    error = (logits - expected).norm() / expected.norm()
    assert error < NEAR[dtype] or error < 1.5 * rounding(model, dtype, ids, expected)


def rounding(model: torch.nn.Module, dtype: str, ids: list[int], expected: torch.Tensor) -> float:
    narrow = reference_logits(copy.deepcopy(model).to(getattr(torch, dtype)), ids)[-len(expected) :]
    return float((narrow - expected).norm() / expected.norm())
