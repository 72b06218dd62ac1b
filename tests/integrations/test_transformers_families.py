"""Families of transformers: an accelerated model gives the logits and the tokens of eager attention."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, MistralConfig, StaticCache
from transformers.masking_utils import (
    bidirectional_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from fdpp.integrations.transformers import append_in_place, masks
from tests.integrations.families import FAMILIES, error, logits, tokens

TOLERANCE = 1e-4
SIZES = ("sliding_window", "attention_chunk_size")
# No interface for attention; heads that the operator does not have; masks that the family's own code reads or chunks.
WITHOUT_OPERATOR = {"bloom", "mpt", "falcon", "deepseek-v3", "narrow-heads", "doge", "llama4"}


def _appending(config):
    cache = DynamicCache(config=config)
    append_in_place(cache)
    return cache


def _static(config):
    return StaticCache(config=config, max_cache_len=40)


def _pad(prompt: torch.Tensor, count: int) -> torch.Tensor:
    """A mask that says that the first row begins with padding."""
    mask = torch.ones_like(prompt)
    mask[0, :count] = 0
    return mask


@pytest.mark.parametrize("family", FAMILIES)
def test_logits(pair, steps, family):
    """Of a prompt longer than a step may be, and of steps of one and more tokens, past the windows."""
    model, accelerated = pair(family)
    prompt = tokens(2, 20)
    expected = logits(model, prompt, DynamicCache(config=model.config))
    for cache in (DynamicCache(config=model.config), _appending(model.config), _static(model.config)):
        steps.clear()
        assert error(logits(accelerated, prompt, cache), expected) < TOLERANCE, cache
        assert bool(steps) == (family not in WITHOUT_OPERATOR), cache


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_padded_rows(pair, family):
    model, accelerated = pair(family)
    prompt, mask = tokens(2, 13), _pad(tokens(2, 13), 4)
    expected = logits(model, prompt, DynamicCache(config=model.config), mask)
    assert error(logits(accelerated, prompt, _appending(model.config), mask), expected) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens(pair, family):
    model, accelerated = pair(family)
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    prompt = tokens(2, 10, seed=5)
    for mask in (torch.ones_like(prompt), _pad(prompt, 3)):
        expected = model.generate(prompt, attention_mask=mask, **options)
        assert torch.equal(accelerated.generate(prompt, attention_mask=mask, **options), expected)


def test_the_operator_gets_window_softcap_and_sinks(pair, steps):
    seen = {}
    for family, option in (("mistral-window", "window"), ("gemma2", "softcap"), ("gpt-oss", "sinks")):
        _, accelerated = pair(family)
        steps.clear()
        logits(accelerated, tokens(1, 20), _static(accelerated.config))
        seen[option] = [options[option] for _, options in steps]
    assert 10 in seen["window"]  # 11 tokens, the new one included; a single new one stands in a cache that ends there
    assert set(seen["softcap"]) == {5.0}
    assert all(sinks.dtype is torch.float32 for sinks in seen["sinks"])


@pytest.mark.parametrize(
    ("make", "sizes", "is_window"),
    [
        (sliding_window_causal_mask_function, {"sliding_window": 9}, True),
        (sliding_window_causal_mask_function, {"sliding_window": 8}, False),
        (lambda size: chunked_causal_mask_function(size, torch.zeros(1)), {"attention_chunk_size": 9}, False),
        (lambda size: chunked_causal_mask_function(size, torch.zeros(1)), dict.fromkeys(SIZES, 9), False),
        (lambda size: bidirectional_mask_function, {"sliding_window": 9}, False),
    ],
)
def test_only_a_causal_window_becomes_lengths(make, sizes, is_window):
    """A mask of chunks has its size where that of a window has its own."""
    config = MistralConfig(**{"sliding_window": None} | sizes)
    mask = masks.decode_mask(1, 1, 20, q_offset=19, mask_function=make(9), local_size=9, config=config)
    assert masks.is_lengths(mask) == is_window


def test_a_mask_of_int32_is_refused_as_in_sdpa(pair):
    _, accelerated = pair("llama")
    with pytest.raises(RuntimeError, match="attn_mask dtype"):
        accelerated(tokens(1, 3), attention_mask=torch.ones(1, 1, 3, 3, dtype=torch.int32))


def test_padding_that_left_the_window_needs_no_mask(pair, steps):
    _, accelerated = pair("mistral-window")
    logits(accelerated, tokens(2, 20), _appending(accelerated.config), _pad(tokens(2, 20), 4))
    assert steps
