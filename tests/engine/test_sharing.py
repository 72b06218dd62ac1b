"""One model for several requests at a time, and copies of it."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch

from fdpp.engine import rope
from fdpp.llm import LLM

PROMPT, OTHER = [5, 6, 7], list(range(20, 60))


@pytest.fixture
def llama(checkpoints):
    return LLM(checkpoints("llama")[0], dtype="float32")


def test_rotary_tables_never_shrink(llama, monkeypatch):
    """A short request that began to reserve first, and would end last, leaves a long one its tables."""
    compute, short_began, long_ended = rope.step_tables, threading.Event(), threading.Event()

    def slow_tables(config, head_dim, length, divisors):
        if length == 10:
            short_began.set()
            long_ended.wait(timeout=1)  # where a lock makes the long one wait, nobody comes
        return compute(config, head_dim, length, divisors)

    monkeypatch.setattr(rope, "step_tables", slow_tables)
    short = threading.Thread(target=llama.model.reserve, args=(10,))
    short.start()
    short_began.wait()
    llama.model.reserve(50)
    long_ended.set()
    short.join()
    llama.model.reserve(20)
    assert [len(table) for table in llama.model.blocks[0].attention.rotary.tables] == [50, 50]


def test_each_request_counts_its_own_rereferences(llama):
    """One request runs in the middle of another."""
    for block in llama.model.blocks:
        block.attention.qkv.weight.tensor.mul_(30)  # logits that no reference of 0 suits
    options = {"max_new_tokens": 8, "ignore_eos": True}
    alone, other = (llama.generate(prompt, **options)[0] for prompt in (PROMPT, OTHER))
    inner = []

    def stream(index: int, text: str) -> None:
        if not inner:
            inner.extend(llama.generate(OTHER, **options))

    outer = llama.generate(PROMPT, stream=stream, **options)[0]
    assert alone.timings.rereferences > 0 and other.timings.rereferences > 0
    assert inner[0].timings.rereferences == other.timings.rereferences
    assert outer.timings.rereferences == alone.timings.rereferences


def through_pickle(x):
    return pickle.loads(pickle.dumps(x))


@pytest.mark.parametrize("duplicate", [through_pickle, copy.deepcopy])
@pytest.mark.parametrize("variant", ["llama", "llama-tied"])
def test_a_copy_is_the_same_model_with_weights_of_its_own(checkpoints, duplicate, variant):
    llm = LLM(checkpoints(variant)[0], dtype="float32", page_size=4)
    expected = llm.generate([PROMPT, OTHER], max_new_tokens=30)  # with captured steps
    again = duplicate(llm)
    for block in llm.model.blocks:
        block.attention.qkv.weight.tensor.zero_()
    assert [c.token_ids for c in again.generate([PROMPT, OTHER], max_new_tokens=30)] == [c.token_ids for c in expected]
    tied = variant == "llama-tied"
    for model in (llm.model, again.model):
        assert (model.head.linear.weight is model.embedding.weight) == tied


def test_a_pickle_has_each_weight_once(llama):
    """All weights are views of one block, which pickle alone would write for each of them."""
    model = llama.model
    total = sum(weight.tensor.nbytes for weight in model.weights())
    assert len(pickle.dumps(model)) < 1.1 * total + 20_000
    block = model.blocks[0]
    assert len(pickle.dumps(block)) < total / 2
    again = through_pickle(block)
    assert torch.equal(again.mlp.down.weight.tensor, block.mlp.down.weight.tensor) and again.mlp.down.bias is None


def test_a_copy_has_no_more_memory_than_its_weights(llama):
    for weight in copy.deepcopy(llama.model).weights():
        assert weight.tensor.untyped_storage().nbytes() == weight.tensor.nbytes
