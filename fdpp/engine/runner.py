"""The loop around the model: prefill all prompts, then step the whole batch until every sequence has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fdpp.engine import kv_cache
from fdpp.engine.graph import MIN_STEPS, Capture, StepGraph, read_tokens
from fdpp.engine.kv_cache import KVCache
from fdpp.engine.logprobs import LogprobRecorder
from fdpp.engine.model import Model
from fdpp.engine.prefill import prefill
from fdpp.engine.prompt_cache import PromptCache
from fdpp.engine.sampling import NOT_FINITE, Sampler
from fdpp.engine.sequence import Sequence
from fdpp.errors import FdppError


@torch.inference_mode()
def run_batch(
    model: Model,
    batch: list[Sequence],
    eos_token_ids: frozenset[int],
    page_size: int | None,
    logprobs: int | None = None,
    capture: Capture | None = None,
    kept: PromptCache | None = None,
) -> None:
    """Complete all sequences of a batch. **Mutates** them.

    With ``capture`` the step becomes a graph, and each step is launched before the tokens of the one before are read.

    Args:
        model: with its weights.
        batch: the sequences.
        eos_token_ids: the tokens that end a text.
        page_size: tokens per page of the key/value cache; None for a contiguous one.
        logprobs: the number of likeliest tokens whose log-probabilities are kept; None keeps none at all.
        capture: how to capture a step; None runs it eagerly.
        kept: of a batch of one: the cache that it goes on with, and leaves to the next request.

    Raises:
        FdppError: the logits are not finite.
        RequestError: the key/value cache would not fit into memory.
    """
    device = model.device
    # The last token is never fed back, so its slot is not needed.
    lengths = [len(sequence.prompt) + sequence.max_new_tokens - 1 for sequence in batch]
    cached = [0] * len(batch)
    if kept is None:
        cache = kv_cache.allocate(model.attentions, lengths, model.dtype, device, page_size)
    else:
        cache, cached[0] = kept.begin(model, batch[0].prompt, lengths[0], page_size)
    model.reserve(max(lengths))
    sampler = Sampler(
        [sequence.sampling for sequence in batch],
        [sequence.index for sequence in batch],
        max(sequence.max_new_tokens for sequence in batch),
        device,
        [sequence.prompt for sequence in batch],
    )
    recorder = None if logprobs is None else LogprobRecorder(logprobs)

    def choose(logits: torch.Tensor, step: int) -> torch.Tensor:
        tokens = sampler(logits, step)
        if recorder is not None:
            recorder.add(logits, tokens)
        return tokens

    begun = prefill(model, [sequence.prompt for sequence in batch], cache, cached)
    for sequence, tokens_computed, seconds in zip(batch, begun.tokens, begun.seconds, strict=True):
        sequence.timings.prompt_tokens = len(sequence.prompt)
        sequence.timings.prompt_tokens_computed = tokens_computed
        sequence.timings.prompt_seconds = seconds

    is_greedy = recorder is None and all(sequence.sampling.temperature == 0 for sequence in batch)
    launched = _launch(model, batch, cache, begun.logits, choose, is_greedy, capture)
    try:
        _read(launched, batch, eos_token_ids, ahead=int(capture is not None and device.type != "cpu"))
    finally:
        if kept is not None:  # the last token has not been fed
            kept.token_ids = [*batch[0].prompt, *batch[0].token_ids[:-1]]
    rereferences = int(cache.rereferences.sum())
    for sequence in batch:
        sequence.timings.rereferences = rereferences
    if recorder is not None:
        for sequence, found in zip(batch, recorder.read(), strict=True):
            sequence.logprobs = found[: len(sequence.token_ids)]


def _read(launched: Iterator[Tensor], batch: list[Sequence], eos_token_ids: frozenset[int], ahead: int) -> None:
    """Give the sequences their tokens, until all have ended."""
    start = time.perf_counter()
    running = list(enumerate(batch))
    for step, tokens in enumerate(read_tokens(launched, ahead)):
        now = time.perf_counter()
        for row, sequence in running:
            if tokens[row] == NOT_FINITE:
                raise FdppError("the model's logits are not finite: its weights are damaged or overflow in this dtype")
            sequence.push(tokens[row], eos_token_ids)
            sequence.timings.decode_tokens = step
            sequence.timings.decode_seconds = now - start if step else 0.0
        running = [(row, sequence) for row, sequence in running if sequence.finish_reason is None]
        if not running:
            break


def _launch(
    model: Model,
    batch: list[Sequence],
    cache: KVCache,
    logits: Tensor,
    choose: Callable[[Tensor, int], Tensor],
    is_greedy: bool,
    capture: Capture | None,
) -> Iterator[Tensor]:
    """The tokens int64 ``[B]`` of each step, which is launched when it is asked for and overwrites those before.

    A row idles from the step on that its sequence cannot take, or is known not to take when the step is launched.
    """
    tokens = choose(logits, 0)
    seqlens = torch.tensor([len(sequence.prompt) for sequence in batch], dtype=torch.int32, device=tokens.device)
    positions = seqlens[:, None] - 1
    advance = torch.ones_like(seqlens)

    def predict() -> Tensor:
        positions.add_(advance[:, None])
        seqlens.add_(advance)
        return model.step(tokens.clamp(min=0), positions, seqlens, cache)

    # The likeliest token does not depend on the number of the step, so its choice can be part of a graph.
    run = (lambda: choose(predict(), 0)) if is_greedy else predict
    steps = max(sequence.max_new_tokens for sequence in batch)
    if capture is not None and steps > MIN_STEPS:
        run = StepGraph(run, capture)
    running = set(range(len(batch)))
    yield tokens
    for step in range(1, steps):
        ended = {row for row in running if batch[row].finish_reason or step == batch[row].max_new_tokens}
        for row in ended:
            positions[row], seqlens[row], advance[row] = -1, 0, 0  # idles from now on
        running -= ended
        yield tokens.copy_(run() if is_greedy else choose(run(), step))
