"""The engine in a process whose defaults somebody has changed: the same answers, and the defaults stay as they were."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from fdpp.cli.options import text
from fdpp.llm import LLM
from tests.engine.gguf_writer import write_gguf
from tests.engine.models import tiny_gguf_tokenizer, tiny_model
from tests.test_process_state import STATES

PROMPTS = ["the end", list(range(20, 90))]  # the second one needs a mask and more than one way of attention
OPTIONS = [
    {},
    {"temperature": 1.0, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2, "seed": 1, "logprobs": 2},
]


@pytest.fixture(scope="module")
def models(checkpoints, tmp_path_factory):
    """A directory with windows, and a GGUF file with a table of rotary divisors."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, tiny_model("llama3-rope"), metadata=tiny_gguf_tokenizer())
    return checkpoints("mistral-window")[0], path


def answers(models) -> list:
    """Token ids and log-probabilities of a few requests to models that are loaded here and now."""
    found = []
    for path in models:
        for page_size in (None, 4):
            llm = LLM(path, dtype="float32", page_size=page_size)
            for options in OPTIONS:
                completions = llm.generate(PROMPTS, max_new_tokens=4, ignore_eos=True, **options)
                found += [(c.token_ids, c.logprobs) for c in completions]
    return found


@pytest.fixture(scope="module")
def expected(models):
    return answers(models)


@pytest.mark.parametrize("state", [*STATES, "autocast"])
def test_defaults_of_torch(models, expected, state):
    states = STATES | {"autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16)}
    with states[state]():
        assert answers(models) == expected


def test_no_generator_is_touched(models, expected):
    """Loading, greedy decoding and decoding with a seed."""
    torch.rand(3), random.random(), np.random.rand()  # consumed already
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    assert answers(models) == expected
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])


def test_a_current_directory_that_is_gone(models, expected, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert answers(models) == expected


def test_texts_of_the_command_line_are_utf8_whatever_the_locale():
    assert text("n\udcc3\udca9") == "né"  # what Python makes of two bytes that an ASCII locale does not know
    assert text("né") == "né"
