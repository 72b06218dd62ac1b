"""generation_config.json: the makers' sampling options are the defaults, in whole and one by one."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch
import transformers

from fdpp.engine.sampling_options import SamplingOptions, sampling_defaults
from fdpp.errors import CheckpointError
from fdpp.llm import LLM

PROMPT = list(range(20, 60))
SAMPLED = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}


@pytest.fixture
def with_config(checkpoints, tmp_path):
    """A function from the content of generation_config.json to a directory that has it."""

    def make(content) -> str:
        shutil.copytree(checkpoints("llama")[0], tmp_path, dirs_exist_ok=True)
        (tmp_path / "generation_config.json").write_text(json.dumps(content))
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, SamplingOptions()),
        ({"eos_token_id": 3, "max_length": 50}, SamplingOptions()),
        ({"do_sample": False, "temperature": 0.9, "top_p": 0.6}, SamplingOptions(0.0, top_p=0.6)),
        ({"temperature": 0.9}, SamplingOptions()),
        ({"do_sample": True}, SamplingOptions(1.0)),
        (SAMPLED, SamplingOptions(0.6, 20, 0.95)),
        ({"do_sample": True, "temperature": None, "top_k": None, "min_p": 0.1}, SamplingOptions(1.0, min_p=0.1)),
        ({"repetition_penalty": 1.05}, SamplingOptions(repetition_penalty=1.05)),
    ],
)
def test_defaults(config, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sampling_defaults(config) == expected


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_a_penalty_changes_the_greedy_answer_as_in_transformers(with_config, penalty):
    path = with_config({"repetition_penalty": penalty, "eos_token_id": 2})
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    expected = model.generate(torch.tensor([PROMPT]), max_new_tokens=16, min_new_tokens=16, pad_token_id=0)
    llm = LLM(path, dtype="float32")
    ids = llm.generate(PROMPT, max_new_tokens=16, ignore_eos=True)[0].token_ids
    assert ids == expected[0, len(PROMPT) :].tolist()
    without = llm.generate(PROMPT, max_new_tokens=16, ignore_eos=True, repetition_penalty=1)[0].token_ids
    plain = LLM(path, dtype="float32", generation_config=False)
    assert plain.generate(PROMPT, max_new_tokens=16, ignore_eos=True)[0].token_ids == without
    assert plain.default_sampling == SamplingOptions()


def test_defaults_are_used_and_each_can_be_changed(with_config):
    llm = LLM(with_config(SAMPLED), dtype="float32")

    def used(**options) -> SamplingOptions:
        return llm.generate(PROMPT, max_new_tokens=2, **options)[0].sampling

    assert used(seed=3) == SamplingOptions(0.6, 20, 0.95, 3)
    assert used(seed=3, top_k=0, min_p=0.1) == SamplingOptions(0.6, 0, 0.95, 3, 0.1)
    assert used(seed=3, sampling=None) == SamplingOptions(0.6, 20, 0.95, 3)
    assert used(sampling=SamplingOptions()) == SamplingOptions()
    greedy = LLM(with_config({}), dtype="float32").generate(PROMPT, max_new_tokens=8)[0]
    assert llm.generate(PROMPT, max_new_tokens=8, temperature=0)[0].token_ids == greedy.token_ids


@pytest.mark.parametrize(
    "config",
    [{"do_sample": "yes"}, {"do_sample": True, "temperature": -1}, {"top_k": "all"}, {"top_p": [1]}, {"min_p": {}}],
    ids=str,
)
def test_values_out_of_range(with_config, config):
    path = with_config(config)
    with pytest.raises(CheckpointError, match="generation_config.json: .*expected.*generation_config=False") as caught:
        LLM(path)
    assert "\n" not in str(caught.value)
    assert LLM(path, generation_config=False).default_sampling == SamplingOptions()


def test_settings_that_are_not_there_are_named():
    with pytest.warns(UserWarning, match="fdpp has no num_beams, no_repeat_ngram_size and goes on without"):
        sampling_defaults({"num_beams": 4, "no_repeat_ngram_size": 3, "typical_p": 1.0, "min_length": 0})
