"""Prompts of a request computed together: the schedule, the logits, and what is computed once."""

from __future__ import annotations

import random

import pytest
import torch

from fdpp.engine import kv_cache
from fdpp.engine import prefill as module
from fdpp.engine.prefill import Schedule, prefill
from fdpp.llm import LLM
from tests.engine.helpers import assert_logits_close, load_on, reference_logits
from tests.engine.models import VOCAB
from tests.ops.backends import BACKENDS


def random_prompts(rng: random.Random, vocab: int = VOCAB) -> list[list[int]]:
    """Prompts of all lengths, some of which begin alike, or are alike."""
    prompts: list[list[int]] = []
    for _ in range(rng.randint(1, 9)):
        beginning = rng.choice(prompts)[: rng.randint(0, 90)] if prompts and rng.random() < 0.7 else []
        rest = [rng.randrange(3, vocab) for _ in range(rng.choice([0, 1, 5, 17, 60, 100]))]
        prompts.append(beginning + rest or [3])
    return prompts


@pytest.mark.parametrize("seed", range(60))
def test_every_token_is_computed_or_taken_over_once(seed, monkeypatch):
    rng = random.Random(seed)
    chunk = rng.choice([40, 1024])
    monkeypatch.setattr(module, "CHUNK", chunk)
    prompts = random_prompts(rng, vocab=6)
    kinds = [rng.choice([0, 0, 7]) for _ in prompts]
    cached = [rng.choice([0, 0, rng.randrange(len(prompt))]) for prompt in prompts]
    schedule, done, copied = Schedule(prompts, cached, kinds), list(cached), 0
    while pieces := schedule.next_pieces():
        assert len({piece.row for piece in pieces}) == len(pieces)
        assert len({kinds[piece.row] for piece in pieces}) == 1
        assert sum(piece.stop - piece.start for piece in pieces) <= chunk
        for row, start, stop in ((piece.row, piece.start, piece.stop) for piece in pieces):
            assert start == done[row] < stop <= len(prompts[row])
            done[row] = stop
        for source, row, length in schedule.take_over():
            assert kinds[source] == kinds[row]
            assert prompts[source][:length] == prompts[row][:length]
            assert done[row] == cached[row] < length <= done[source]
            done[row] = length
            copied += length
    assert done == [len(prompt) for prompt in prompts]
    alike = len(prompts) - len({(kind, *prompt) for kind, prompt in zip(kinds, prompts, strict=True)})
    assert copied > 0 or not alike


def test_a_common_beginning_is_computed_once():
    beginning = list(range(100))
    prompts = [[*beginning, 1, 2], [7] * 20, [*beginning, 3], [*beginning[:50], 5, 5], beginning, [*beginning, 1, 2]]
    schedule, computed = Schedule(prompts, [0] * 6, [0] * 6), 0
    passes = 0
    while pieces := schedule.next_pieces():
        computed += sum(piece.stop - piece.start for piece in pieces)
        schedule.take_over()
        passes += 1
    assert computed == 100 + 2 + 20 + 1 + 2
    assert passes == 3  # up to 50, to 100, and the ends


VARIANTS = ["llama", "mistral-window", "gemma2", "bloom", "opt", "glm", "longrope", "dynamic-rope"]


@pytest.mark.parametrize("page", [None, 8])
@pytest.mark.parametrize("variant", VARIANTS)
def test_together_as_alone(checkpoints, variant, page):
    path, model = checkpoints(variant)
    rng = random.Random(variant)
    prompts = random_prompts(rng)
    prompts += [[*prompts[0], 9], list(prompts[0])]
    llm = LLM(path, dtype="float32")
    cache = kv_cache.allocate(llm.model.attentions, [len(p) for p in prompts], llm.dtype, llm.device, page)
    llm.model.reserve(max(map(len, prompts)))
    found = prefill(llm.model, prompts, cache)
    assert found.tokens[-1] == 0 or found.tokens[0] == 0
    for ids, logits in zip(prompts, found.logits, strict=True):
        # A new copy: transformers remembers the longest sequence of such rotary embeddings.
        fresh = prefill_alone(llm, ids) if "rope" in variant else reference_logits(model, ids)[-1]
        assert_logits_close(logits, fresh)


def prefill_alone(llm: LLM, ids: list[int], cached: int = 0) -> torch.Tensor:
    cache = kv_cache.allocate(llm.model.attentions, [len(ids)], llm.dtype, llm.device)
    llm.model.reserve(len(ids))
    if cached:
        prefill(llm.model, [ids[:cached]], cache)
    return prefill(llm.model, [ids], cache, [cached]).logits[0]


@pytest.mark.parametrize("cached", [1, 20, 69])
def test_what_is_cached_is_not_computed_again(checkpoints, cached):
    path, model = checkpoints("mistral-window")
    ids = torch.randint(3, VOCAB, (70,), generator=torch.Generator().manual_seed(0)).tolist()
    assert_logits_close(prefill_alone(LLM(path, dtype="float32"), ids, cached), reference_logits(model, ids)[-1])


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_on_every_backend(checkpoints, monkeypatch, backend):
    llm = load_on(backend, monkeypatch, checkpoints("llama")[0], dtype="bfloat16")
    prompts = random_prompts(random.Random(5))
    cache = kv_cache.allocate(llm.model.attentions, [len(p) for p in prompts], llm.dtype, llm.device, 8)
    llm.model.reserve(max(map(len, prompts)))
    for ids, logits in zip(prompts, prefill(llm.model, prompts, cache).logits.float(), strict=True):
        alone = prefill_alone(llm, ids).float()
        assert (logits - alone).norm() < 0.03 * alone.norm()


def test_weights_are_read_once_for_all_prompts(checkpoints, monkeypatch):
    llm, passes = LLM(checkpoints("llama")[0], dtype="float32"), []
    forward = llm.model.forward
    monkeypatch.setattr(llm.model, "forward", lambda *arguments: passes.append(1) or forward(*arguments))
    prompts = [[n, *range(20)] for n in range(3, 20)]
    answers = llm.generate(prompts, max_new_tokens=1, ignore_eos=True)
    assert len(passes) == 1
    assert [answer.timings.prompt_tokens_computed for answer in answers] == [21] * 17
    assert all(answer.timings.prompt_seconds > 0 for answer in answers)
