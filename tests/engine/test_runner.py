"""Requests that follow one another through the same rows, caches and captured steps."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import threading

import pytest
import torch

from fdpp import PromptCache, dataflow
from fdpp.engine.kv_cache import Pool
from fdpp.engine.recording import RecordedStep
from fdpp.engine.slots import MIN_STEPS
from fdpp.llm import LLM
from tests.engine.models import VARIANTS, VOCAB


def mixed_requests(seed: int, count: int) -> tuple[list[list[int]], list[int]]:
    """Prompts of 1 to 40 tokens, some with a beginning in common, and the tokens that end their answers."""
    rng = random.Random(seed)
    common = [rng.randrange(3, VOCAB) for _ in range(36)]
    prompts = []
    for _ in range(count):
        own = [rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 40))]
        prompts.append(own if rng.random() < 0.7 else common + own[:4])
    return prompts, [rng.randrange(3, VOCAB) for _ in range(20)]


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("page_size", [None, 8])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 5}, {"repetition_penalty": 1.3}])
def test_rows_that_refill(checkpoints, page_size, capture, sampling):
    """More prompts than rows, with answers of all lengths: each as if it were alone."""
    prompts, ends = mixed_requests(0, 23)
    options = {"max_new_tokens": 40, "stop_token_ids": ends, "logprobs": 1, **sampling}
    path = checkpoints("llama")[0]
    alone = LLM(path, dtype="float32", capture=False, max_batch_size=len(prompts))
    expected = alone.generate(prompts, **options)
    assert len({len(completion.token_ids) for completion in expected}) > 8
    together = LLM(path, dtype="float32", page_size=page_size, capture=capture, max_batch_size=4)
    for _ in range(2):
        actual = together.generate(prompts, **options)
        for one, other in zip(actual, expected, strict=True):
            assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)
            assert [list(step) for step in one.logprobs] == [list(step) for step in other.logprobs]
            assert one.timings.decode_tokens == len(one.token_ids) - 1


def test_a_row_takes_the_next_prompt_at_once(checkpoints, monkeypatch):
    """As many steps as the longest way through the rows has, where groups would wait for their longest."""
    llm, steps = LLM(checkpoints("llama")[0], max_batch_size=2, capture=False), []
    step = llm.model.step
    monkeypatch.setattr(llm.model, "step", lambda tokens, *rest: steps.append(len(tokens)) or step(tokens, *rest))
    free = llm.generate([7, 8, 9], max_new_tokens=40, ignore_eos=True)[0]
    steps.clear()
    first = free.token_ids[3]
    llm.generate([[7, 8, 9], [11], [12]], max_new_tokens=24, ignore_eos=True, stop_token_ids=[first])
    assert len(steps) == 3 + 23 and steps[:23] == [2] * 23


@pytest.mark.parametrize("page", [None, 8])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_a_captured_step_has_the_bits_of_an_eager_one(checkpoints, variant, page, monkeypatch):
    """And is one piece of native work, or says what is called from Python."""
    captured: list[RecordedStep] = []

    def capture(step):
        captured.append(RecordedStep(step))
        return captured[-1]

    logits: dict[bool, list[torch.Tensor]] = {}
    for captures in (False, True):
        llm = LLM(checkpoints(variant)[0], page_size=page, capture=captures)
        if captures:
            llm._capture = capture
        kept = logits.setdefault(captures, [])
        add = lambda self, values, *rest, kept=kept: kept.append(values.clone())  # noqa: E731
        monkeypatch.setattr("fdpp.engine.logprobs.LogprobRecorder.add", add)
        monkeypatch.setattr("fdpp.engine.logprobs.LogprobRecorder.hand_out", lambda self: None)
        prompts = [[5, 6, 7], list(range(20, 50)), [9]]
        llm.generate(prompts, max_new_tokens=MIN_STEPS + 6, ignore_eos=True, logprobs=0)
    assert len(captured) == 1
    for eager, recorded in zip(logits[False], logits[True], strict=True):
        assert torch.equal(eager, recorded)
    assert captured[0].others == [] or not variant.startswith("llama")


def test_a_captured_step_follows_the_settings(checkpoints):
    """Threads, batch invariance, and references that are fitted in the middle of everything."""
    path = checkpoints("llama")[0]
    llm, options = LLM(path), {"max_new_tokens": MIN_STEPS + 6, "ignore_eos": True}
    before = torch.get_num_threads()

    def check():
        actual = llm.generate([[5, 6, 7], [8]], **options)
        assert actual[0].token_ids == LLM(path, capture=False).generate([[5, 6, 7], [8]], **options)[0].token_ids

    try:
        for count in (1, 3, 2):
            torch.set_num_threads(count)
            check()
        dataflow.set_batch_invariant(True)
        check()
    finally:
        dataflow.set_batch_invariant(False)
        torch.set_num_threads(before)
    check()
    llm.generate([[5, 6, 7]], **options)
    for attention in llm.model.attentions:
        attention.phi = torch.full((attention.num_heads,), torch.nan)
    llm.model.version += 1
    (moved,) = llm.generate([[5, 6, 7]], **options)
    assert moved.timings.rereferences > 0


def tensors_alive() -> int:
    gc.collect()
    return sum(1 for thing in gc.get_objects() if type(thing) is torch.Tensor)


@pytest.mark.parametrize("page_size", [None, 8])
def test_memory_does_not_grow(checkpoints, page_size):
    """After the first requests, caches, inputs and captured steps are those that are there."""
    llm, rng = LLM(checkpoints("llama")[0], page_size=page_size, max_batch_size=4), random.Random(1)
    prompts, ends = mixed_requests(2, 40)

    def request(length: int) -> None:
        group = rng.sample(prompts, rng.randint(1, 6))
        llm.generate(group, max_new_tokens=length, stop_token_ids=ends)

    llm.generate(prompts, max_new_tokens=60)  # the largest one first
    for _ in range(30):
        request(30)
    (runner,), before = llm._runners, tensors_alive()
    memory = [tensor.data_ptr() for tensor in runner._pool._cache.keys]
    for _ in range(60):
        request(rng.randint(1, 60))
    assert [tensor.data_ptr() for tensor in runner._pool._cache.keys] == memory
    assert tensors_alive() <= before + 40 * len(llm.model.blocks)  # steps for numbers of rows that are new
    for _ in range(60):
        request(rng.randint(1, 60))
    settled = tensors_alive()
    for _ in range(60):
        request(rng.randint(1, 60))
    assert tensors_alive() <= settled + 40


def test_a_request_that_breaks_leaves_its_runner_usable(checkpoints):
    llm = LLM(checkpoints("llama")[0], page_size=8, max_batch_size=2)
    expected = llm.generate([[5, 6, 7], [8], [9]], max_new_tokens=30, ignore_eos=True)

    def stream(index: int, text: str) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            llm.generate([[5, 6, 7], [8], [9]], max_new_tokens=30, ignore_eos=True, stream=stream)
    actual = llm.generate([[5, 6, 7], [8], [9]], max_new_tokens=30, ignore_eos=True)
    assert [c.token_ids for c in actual] == [c.token_ids for c in expected]


def test_requests_of_several_threads(checkpoints):
    llm = LLM(checkpoints("llama")[0], max_batch_size=2)
    prompts, _ = mixed_requests(3, 5)
    expected = [c.token_ids for c in llm.generate(prompts, max_new_tokens=40, ignore_eos=True)]
    answers: list[list[list[int]]] = []

    def ask() -> None:
        for _ in range(3):
            answers.append([c.token_ids for c in llm.generate(prompts, max_new_tokens=40, ignore_eos=True)])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 12 and len(llm._runners) == 1


def test_a_prompt_cache_keeps_its_captured_step(checkpoints):
    llm, captures = LLM(checkpoints("llama")[0]), []
    capture = llm._capture
    llm._capture = lambda step: captures.append(step) or capture(step)
    cache, ids = PromptCache(), [5, 6, 7]
    for _ in range(4):
        (answer,) = llm.generate(ids, max_new_tokens=MIN_STEPS + 6, ignore_eos=True, cache=cache)
        ids = ids + answer.token_ids
    assert len(captures) == 1


@pytest.mark.parametrize("seed", range(20))
def test_pages_have_one_owner(checkpoints, seed):
    """Random rows come, go and move; whoever has a page has it alone, and none is lost."""
    llm, rng = LLM(checkpoints("llama")[0]), random.Random(seed)
    pool = Pool(llm.model.attentions, llm.dtype, llm.device, 4)
    lengths = [rng.randint(1, 60) for _ in range(9)]
    cache = pool.begin(lengths, 4)
    owned: dict[int, list[int]] = {}
    for _ in range(60):
        row = rng.randrange(4)
        if row not in owned:
            length = rng.choice(lengths)
            if sum(map(len, owned.values())) + -(-length // 4) > len(cache.keys[0]):
                continue
            pool.seat(row, length)
            owned[row] = cache.block_table[row, : -(-length // 4)].tolist()
        elif rng.random() < 0.5 and (free := [other for other in range(4) if other not in owned]):
            target = rng.choice(free)
            pool.move(row, target, 1)
            owned[target] = owned.pop(row)
            assert cache.block_table[target, : len(owned[target])].tolist() == owned[target]
        else:
            pool.leave(row)
            del owned[row]
        pages = [page for mine in owned.values() for page in mine]
        assert len(set(pages)) == len(pages) and len(pool._free) + len(pages) == len(cache.keys[0])


def test_what_a_step_reads_on_the_host_is_refused():
    value = torch.ones(1)
    with pytest.raises(RuntimeError, match="on the host"):
        RecordedStep(lambda: value * float(value))


def test_what_is_written_while_recording_is_undone():
    count, other = torch.ones(3), torch.zeros(3)

    def step():
        other.copy_(count.mul_(2))
        return count.add_(1)

    recorded = RecordedStep(step)
    assert count.tolist() == [1, 1, 1] and other.tolist() == [0, 0, 0]
    assert recorded().tolist() == [3, 3, 3] and other.tolist() == [2, 2, 2]
    assert recorded().tolist() == [7, 7, 7]


def test_a_capture_does_not_load_the_compiler():
    """Which takes torch two seconds."""
    code = """
import sys
import torch
from fdpp.engine.recording import RecordedStep
count = torch.zeros(1)
assert RecordedStep(lambda: count.add_(1))().tolist() == [1]
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
