"""Every family against transformers: the same logits from the same random weights, ragged, contiguous and paged."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from fdpp.llm import LLM
from tests.engine.helpers import assert_logits_close, forced_logits, reference_logits
from tests.engine.models import VARIANTS, VOCAB

LENGTHS = (70, 23, 41)
PREFILL = (60, 1, 33)


def random_sequences(seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.mark.parametrize("page", [None, 8])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_transformers(checkpoints, variant, page):
    path, model = checkpoints(variant)
    llm, sequences = LLM(path, dtype="float32"), random_sequences(1)
    ours = forced_logits(llm, sequences, PREFILL, page)
    for ids, count, logits in zip(sequences, PREFILL, ours, strict=True):
        assert_logits_close(logits, reference_logits(model, ids)[count - 1 :])


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_equal_those_of_transformers(checkpoints, variant):
    path, model = checkpoints(variant)
    prompts = [sequence[:length] for sequence, length in zip(random_sequences(6), (30, 1, 17), strict=True)]
    answers = LLM(path, dtype="float32").generate(prompts, max_new_tokens=12, ignore_eos=True)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        for _ in range(12):
            ids.append(int(reference_logits(model, ids)[-1].argmax()))
        assert answer.token_ids == ids[len(prompt) :]


@pytest.mark.parametrize("page", [None, 8])
@pytest.mark.parametrize("variant", ["llama", "mistral-window", "qwen2-window", "bloom", "gemma2", "opt", "glm"])
def test_prefill_in_chunks_changes_nothing(checkpoints, variant, page, monkeypatch):
    path, model = checkpoints(variant)
    ids = random_sequences(2)[0]
    monkeypatch.setattr("fdpp.engine.prefill.CHUNK", 20)  # three chunks by SDPA, the last one by decode_attention
    (logits,) = forced_logits(LLM(path, dtype="float32"), [ids], [len(ids)], page)
    assert_logits_close(logits[0], reference_logits(model, ids)[-1])


def test_the_older_spelling_of_rope_scaling(checkpoints, tmp_path):
    path, model = checkpoints("llama3-rope")
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    config = json.loads((path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ids = random_sequences(3)[0]
    (logits,) = forced_logits(LLM(tmp_path, dtype="float32"), [ids], [len(ids)], None)
    assert_logits_close(logits[0], reference_logits(model, ids)[-1])


def test_shards(checkpoints, tmp_path):
    _, model = checkpoints("qwen3")
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ids = random_sequences(4)[0]
    (logits,) = forced_logits(LLM(tmp_path, dtype="float32"), [ids], [len(ids)], None)
    assert_logits_close(logits[0], reference_logits(model, ids)[-1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near(checkpoints, dtype):
    path, model = checkpoints("llama")
    ids = random_sequences(5)[0]
    (logits,) = forced_logits(LLM(path, dtype=dtype), [ids], [30], None)
    expected = reference_logits(model, ids)[29:]
    assert (logits - expected).norm() / expected.norm() < {"bfloat16": 1e-1, "float16": 1e-2}[dtype]
