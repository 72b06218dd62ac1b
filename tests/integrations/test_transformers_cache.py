"""Cache layers that append in place: what transformers' own layers hold, over every operation of a cache."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import DynamicCache, MistralConfig, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from fdpp.integrations.transformers import append_in_place
from fdpp.integrations.transformers.cache import AppendingLayer, AppendingWindowLayer

ROWS = 3
# What generate does to a cache between steps. Rows stay as many as they are, so that any order is possible.
OPERATIONS = {
    "crop": lambda cache, choose: cache.crop(-choose.randrange(3)),
    "reorder": lambda cache, choose: cache.reorder_cache(torch.tensor(choose.choices(range(ROWS), k=ROWS))),
    "repeat and select": lambda cache, choose: (
        cache.batch_repeat_interleave(2),
        cache.batch_select_indices(torch.tensor(choose.sample(range(2 * ROWS), ROWS))),
    ),
    "reset": lambda cache, choose: cache.reset(),
    "nothing": lambda cache, choose: None,
}


def _cache(window: int | None, records: bool = False) -> DynamicCache:
    """A cache of one layer, as transformers makes it."""
    cache = DynamicCache(config=MistralConfig(num_hidden_layers=1, sliding_window=window))
    if records:
        cache.activate_past_recording()
    return cache


def _append(cache: DynamicCache, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return cache.update(states, -states, 0)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("seed", range(8))
def test_any_sequence_of_operations(window, seed):
    choose = random.Random(seed)
    records = choose.random() < 0.5
    ours, theirs = _cache(window, records), _cache(window, records)
    append_in_place(ours)
    for _ in range(60):
        states = torch.randn(ROWS, 2, choose.choice([1, 1, 1, 2, 5, 40]), 8)
        assert all(map(torch.equal, _append(ours, states), _append(theirs, states)))
        # A window that does not record its past cannot be cropped.
        operation = choose.choice([name for name in OPERATIONS if records or window is None or name != "crop"])
        state = choose.getstate()
        for cache in (ours, theirs):
            choose.setstate(state)
            OPERATIONS[operation](cache, choose)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.get_mask_sizes(3, 0) == theirs.get_mask_sizes(3, 0)


@pytest.mark.parametrize("window", [None, 7])
def test_steps_stay_in_their_memory(window):
    """A copy for a step that doubles the memory, or moves the window to its start, and for no other."""
    cache = _cache(window)
    append_in_place(cache)
    _append(cache, torch.randn(1, 2, 5, 8))
    places = {_append(cache, torch.randn(1, 2, 1, 8))[0].untyped_storage().data_ptr() for _ in range(60)}
    assert len(places) <= 2
    assert cache.layers[0].keys.untyped_storage().nbytes() <= 2 * 65 * 2 * 8 * 4


def test_a_crop_is_written_over():
    cache = _cache(None)
    append_in_place(cache)
    _append(cache, torch.randn(1, 2, 9, 8))
    before = cache.layers[0].keys.data_ptr()
    cache.crop(-4)
    _append(cache, torch.randn(1, 2, 2, 8))
    assert cache.layers[0].keys.data_ptr() == before


def test_gradients_flow():
    """To the keys, and to what was multiplied by keys that others followed."""
    cache = _cache(None)
    append_in_place(cache)
    with torch.enable_grad():
        queries, states = torch.ones(8, requires_grad=True), torch.randn(1, 2, 3, 8, requires_grad=True)
        _append(cache, torch.ones(1, 2, 4, 8))
        product = (queries * _append(cache, torch.ones(1, 2, 1, 8))[0]).sum()
        keys, _ = _append(cache, states)
        (product + keys.sum()).backward()
    assert torch.equal(states.grad, torch.ones_like(states))
    assert torch.equal(queries.grad, torch.full((8,), 10.0))


def test_what_inference_mode_made_can_be_continued_outside():
    cache = _cache(None)
    append_in_place(cache)
    with torch.inference_mode():
        _append(cache, torch.ones(1, 2, 3, 8))
    keys, _ = _append(cache, torch.zeros(1, 2, 1, 8))
    assert keys.sum() == 2 * 3 * 8


def test_states_that_do_not_fit_fail_as_they_do_in_transformers():
    for wrong in (torch.randn(1, 2, 1, 8), torch.randn(2, 1, 1, 8), torch.randn(2, 2, 1, 4)):
        ours, theirs = _cache(None), _cache(None)
        append_in_place(ours)
        for cache in (ours, theirs):
            _append(cache, torch.randn(2, 2, 3, 8))
            with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
                _append(cache, wrong)


def test_only_plain_layers_change():
    mixed = MistralConfig(num_hidden_layers=1, sliding_window=7)
    static, offloaded = StaticCache(config=mixed, max_cache_len=9), DynamicCache(config=mixed, offloading=False)
    offloaded.offloading = True
    for cache, kind in ((static, type(static.layers[0])), (offloaded, DynamicSlidingWindowLayer)):
        append_in_place(cache)
        assert type(cache.layers[0]) is kind
    append_in_place(None)
    lazy = DynamicCache()
    append_in_place(lazy)
    append_in_place(lazy)
    assert lazy.layer_class_to_replicate is AppendingLayer
    windowed = DynamicCache(config=mixed)
    append_in_place(windowed)
    assert type(windowed.layers[0]) is AppendingWindowLayer
    assert issubclass(AppendingLayer, DynamicLayer)
