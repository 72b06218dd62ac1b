"""Decoding with a captured step: the eager loop's results, by a GPU's graphs or a CPU's recordings."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fdpp.engine.graph import MIN_STEPS, StepGraph, read_tokens
from fdpp.engine.recording import RecordedStep
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


@pytest.mark.parametrize("count", [1, 2, MIN_STEPS, MIN_STEPS + 1])
def test_a_capture_that_does_not_pay_is_not_made(load, count):
    eager, captured = load()
    captures, capture = [], captured._capture
    captured._capture = lambda step: captures.append(step) or capture(step)
    options = {"max_new_tokens": count, "ignore_eos": True}
    assert results(captured, **options) == results(eager, **options)
    assert len(captures) == (count > MIN_STEPS)


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


def test_a_step_is_eager_once_and_captured_once():
    count, captures = torch.zeros(1), []
    step = StepGraph(lambda: count.add_(1), lambda step: captures.append(int(count)) or RecordedStep(step))
    assert [int(step()) for _ in range(4)] == [1, 2, 3, 4]
    assert captures == [1]


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_tokens_are_read_while_later_steps_are_launched(ahead):
    """And are those of their own step, though all steps write into one tensor."""
    tokens, launched = torch.zeros(2, dtype=torch.int64), []

    def launch():
        for step in range(5):
            launched.append(step)
            yield tokens.fill_(step)

    for step, read in enumerate(read_tokens(launch(), ahead)):
        assert read == [step, step]
        assert launched[-1] == min(step + ahead, 4)
    assert step == 4


@pytest.mark.skipif("cuda" not in DEVICES, reason="memory of a GPU")
def test_memory_does_not_grow(checkpoints):
    llm = LLM(checkpoints("llama")[0], device="cuda")
    reserved = []
    for _ in range(20):
        llm.generate(PROMPTS, max_new_tokens=MIN_STEPS + 2, ignore_eos=True)
        reserved.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert reserved[-1] == reserved[3]


def test_rows_that_have_ended_idle(checkpoints):
    """From the next step on."""
    llm = LLM(checkpoints("llama")[0])
    free = llm.generate(PROMPTS, max_new_tokens=MIN_STEPS, ignore_eos=True)
    eos, step = free[1].token_ids[4], llm.model.step
    ends = [
        tokens.index(eos) + 1 if eos in tokens else MIN_STEPS
        for tokens in (completion.token_ids for completion in free)
    ]
    llm.eos_token_ids, steps = frozenset({eos}), []

    def spy(tokens, positions, seqlens, cache):
        assert torch.equal(positions[:, 0] + 1, seqlens)
        steps.append(positions[:, 0].tolist())
        return step(tokens, positions, seqlens, cache)

    llm.model.step = spy
    for capture in (None, RecordedStep):
        llm._capture = capture
        steps.clear()
        llm.generate(PROMPTS, max_new_tokens=MIN_STEPS)
        for row, (prompt, end) in enumerate(zip(PROMPTS, ends, strict=True)):
            moved = min(end - 1, MIN_STEPS - 1)
            expected = [len(prompt) + at if at < moved else -1 for at in range(len(steps))]
            assert [positions[row] for positions in steps] == expected
    assert min(ends) < MIN_STEPS
