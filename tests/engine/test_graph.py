"""Decoding with a captured step: the eager loop's results, by a GPU's graphs or a CPU's recordings."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fdpp.engine.runner import Runner
from fdpp.engine.slots import MIN_STEPS
from fdpp.errors import FdppError
from fdpp.llm import LLM
from tests.ops.backends import BACKENDS

PROMPTS = [[5, 6, 7], list(range(20, 41)), [9], [200, 100, 50, 25], list(range(5, 12))]
OPTIONS = {
    "greedy": {},
    "penalised": {"repetition_penalty": 1.5},
    "logprobs": {"logprobs": 2},
    "sampled": {"temperature": 0.9, "seed": 3},
    "top-p": {"temperature": 2, "top_p": 0.9, "repetition_penalty": 1.1, "seed": 1},
}
DEVICES = [backend.device for backend in BACKENDS if backend.namespace == "fdpp"]


@pytest.fixture(params=DEVICES)
def load(request, checkpoints):
    """Gives a model, and the same one with a captured step."""

    def load(variant: str = "llama", **options) -> tuple[LLM, LLM]:
        path, _ = checkpoints(variant)
        options = {"device": request.param, "dtype": "bfloat16", **options}
        return LLM(path, capture=False, **options), LLM(path, **options)

    return load


def results(llm: LLM, **options):
    """All that comes back and all that is shown, but for the times."""
    shown: list[tuple[int, str]] = []
    completions = llm.generate(PROMPTS, stream=lambda *piece: shown.append(piece), **options)
    return shown, [
        dataclasses.replace(c, timings=dataclasses.replace(c.timings, prompt_seconds=0, decode_seconds=0))
        for c in completions
    ]


def without_rereferences(result):
    shown, completions = result
    for completion in completions:
        completion.timings.rereferences = 0
    return shown, completions


@pytest.mark.parametrize("page_size", [None, 4])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("variant", ["llama", "mistral-window"])
def test_the_results_of_the_eager_loop(load, variant, options, page_size):
    """Rows that reach their length at different steps among them, because of the context's end."""
    eager, captured = load(variant, page_size=page_size, max_seq_len=45)
    expected = results(eager, max_new_tokens=30, ignore_eos=True, **options)
    assert {len(completion.token_ids) for completion in expected[1]} == {24, 30}
    assert results(captured, max_new_tokens=30, ignore_eos=True, **options) == expected


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("draft", ["llama", "qwen2"])
def test_steps_of_several_tokens(load, checkpoints, draft, options):
    """Of guesses that are right, and of guesses that are not."""
    eager, captured = load(draft=checkpoints(draft)[0], max_batch_size=3)
    expected = results(eager, max_new_tokens=60, ignore_eos=True, **options)
    assert any(completion.timings.guessed_tokens for completion in expected[1])
    assert results(captured, max_new_tokens=60, ignore_eos=True, **options) == expected


@pytest.mark.parametrize("page_size", [None, 4])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_rows_that_end_early(load, options, page_size):
    """The step that such a row still makes shows nowhere."""
    eager, captured = load(page_size=page_size)
    free = eager.generate(PROMPTS, max_new_tokens=30, ignore_eos=True, **options)
    eager.eos_token_ids = captured.eos_token_ids = frozenset({free[1].token_ids[9], free[2].token_ids[0]})
    options = {"max_new_tokens": 30, "stop": [free[3].text[6:8]], **options}
    expected = results(eager, **options)
    lengths = {len(completion.token_ids) for completion in expected[1]}
    assert len(lengths) > 2 and min(lengths) == 1
    assert without_rereferences(results(captured, **options)) == without_rereferences(expected)


def test_all_rows_end_at_once(load):
    eager, captured = load()
    free = eager.generate(PROMPTS[0], max_new_tokens=30)[0]
    captured.eos_token_ids = frozenset({free.token_ids[0]})
    (ended,) = captured.generate(PROMPTS[0], max_new_tokens=30)
    assert (ended.token_ids, ended.finish_reason, ended.timings.decode_tokens) == (free.token_ids[:1], "stop", 0)


@pytest.mark.parametrize("count", [1, 2, MIN_STEPS + 1, MIN_STEPS + 2])
def test_a_capture_that_does_not_pay_is_not_made(load, count):
    eager, captured = load()
    captures, capture = [], captured._capture
    captured._capture = lambda step: captures.append(step) or capture(step)
    options = {"max_new_tokens": count, "ignore_eos": True}
    assert results(captured, **options) == results(eager, **options)
    assert len(captures) == (count > MIN_STEPS + 1)
    assert results(captured, **options) == results(eager, **options)
    assert len(captures) == (count > MIN_STEPS)  # once for all requests; the second one needs no eager step


def test_requests_one_after_the_other(load):
    """Each has a cache of its own; a graph of another request would write into that one's."""
    eager, captured = load(max_batch_size=2)
    for prompts in (PROMPTS, PROMPTS[::-1], PROMPTS[:1]):
        expected, actual = (llm.generate(prompts, max_new_tokens=24, ignore_eos=True) for llm in (eager, captured))
        assert [c.token_ids for c in actual] == [c.token_ids for c in expected]


def test_a_capture_that_fails(load):
    """Here because the step reads a value on the host, which no graph can hold."""
    eager, captured = load()
    capture = captured._capture
    captured._capture = lambda step: capture(lambda: step().add_(0 * int(torch.zeros(1, device=captured.device))))
    with pytest.warns(UserWarning, match="runs eagerly: it cannot be captured: .*(captur|on the host)"):
        actual = results(captured, max_new_tokens=24, ignore_eos=True)
    assert actual == results(eager, max_new_tokens=24, ignore_eos=True)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_logits_that_are_not_finite(load, options):
    """From the first step that reads a damaged row of the embedding."""
    _, captured = load()
    (free,) = captured.generate(PROMPTS[0], max_new_tokens=24, ignore_eos=True, **options)
    damaged = free.token_ids[20]
    at = free.token_ids.index(damaged)
    captured.model.embedding.weight.tensor[damaged] = torch.nan
    assert captured.generate(PROMPTS[0], max_new_tokens=at + 1, ignore_eos=True, **options)
    with pytest.raises(FdppError, match="not finite"):
        captured.generate(PROMPTS[0], max_new_tokens=at + 2, ignore_eos=True, **options)


@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("page_size", [None, 4])
def test_tokens_are_read_while_later_steps_are_launched(load, monkeypatch, batch_invariant, ahead, options, page_size):
    """What a sequence that has ended still gets shows nowhere, also when its row has another one by then.

    Rows meet others when tokens are read later, which must not decide how their sums are rounded.
    """
    eager, captured = load(page_size=page_size, max_batch_size=2)
    free = eager.generate(PROMPTS, max_new_tokens=30, ignore_eos=True, **options)
    eager.eos_token_ids = captured.eos_token_ids = frozenset({free[1].token_ids[9], free[2].token_ids[0]})
    expected = results(eager, max_new_tokens=30, **options)
    monkeypatch.setattr(Runner, "_ahead", ahead)
    actual = results(captured, max_new_tokens=30, **options)
    for shown, _ in (actual, expected):
        shown.sort(key=lambda piece: piece[0])  # a row that is free later is taken later
    assert without_rereferences(actual) == without_rereferences(expected)


@pytest.mark.skipif("cuda" not in DEVICES, reason="memory of a GPU")
def test_memory_does_not_grow(checkpoints):
    llm = LLM(checkpoints("llama")[0], device="cuda")
    reserved = []
    for _ in range(20):
        llm.generate(PROMPTS, max_new_tokens=MIN_STEPS + 2, ignore_eos=True)
        reserved.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert reserved[-1] == reserved[3]


def test_rows_that_have_ended_cost_nothing(checkpoints, monkeypatch):
    """They idle from the next step on, and steps have fewer rows when fewer will do."""
    llm = LLM(checkpoints("llama")[0], capture=False)
    free = llm.generate(PROMPTS, max_new_tokens=MIN_STEPS, ignore_eos=True)
    eos, step, steps = free[1].token_ids[4], llm.model.step, []
    tokens_of = (completion.token_ids for completion in free)
    ends = [tokens.index(eos) + 1 if eos in tokens else MIN_STEPS for tokens in tokens_of]
    llm.eos_token_ids = frozenset({eos})

    def spy(tokens, positions, seqlens, cache):
        assert torch.equal(positions[:, 0] + 1, seqlens)
        steps.append(positions[:, 0].tolist())
        return step(tokens, positions, seqlens, cache)

    monkeypatch.setattr(llm.model, "step", spy)
    llm.generate(PROMPTS, max_new_tokens=MIN_STEPS)
    for number, positions in enumerate(steps, 2):  # the first token is that of the prompt
        running = sorted(len(prompt) + number - 2 for prompt, end in zip(PROMPTS, ends, strict=True) if end >= number)
        assert sorted(position for position in positions if position >= 0) == running
        assert len(positions) <= len(running) + (len(running) > 4)  # 5 rows run as 6
    assert min(ends) < MIN_STEPS == len(steps) + 1
