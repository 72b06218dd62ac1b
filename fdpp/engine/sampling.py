"""From logits to tokens, on the device of the logits and without reading anything back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fdpp.engine.sampling_options import SamplingOptions

NOT_FINITE = -1  # in place of a token where the logits hold NaN or infinity
_ALL = 1 << 62  # more tokens than any vocabulary has


def seeded(options: SamplingOptions) -> SamplingOptions:
    """The options with a seed, drawn from torch's global generator where they sample and have none."""
    if options.temperature == 0 or options.seed is not None:
        return options
    return dataclasses.replace(options, seed=int(torch.randint(1 << 62, (), dtype=torch.int64, device="cpu")))


def greedy(logits: Tensor) -> Tensor:
    """The likeliest tokens int64 ``[B]`` for logits ``[B, V]``; ``NOT_FINITE`` where the peak is NaN or infinite."""
    peaks, likeliest = logits.max(dim=-1)  # NaN counts as the largest
    return torch.where(peaks.isfinite(), likeliest, NOT_FINITE)


class Sampler:
    """Chooses the tokens of sequences, step by step, of those that are asked for.

    The draws of a sequence depend on its seed, its index and the step alone: what it says does not depend on the batch
    that it shares. An option that no sequence uses costs nothing.

    Args:
        options: how to choose, for all sequences or one for each. The sequences are known by their place here.
        indices: a number for each sequence, which with the seed determines its draws.
        steps: the largest number of tokens of a sequence.
        device: of the logits.
        prompts: the token ids of each prompt, for a repetition penalty; () where there are none.
    """

    def __init__(
        self,
        options: SamplingOptions | Sequence[SamplingOptions],
        indices: Sequence[int],
        steps: int,
        device: torch.device,
        prompts: Sequence[Sequence[int]] = (),
    ) -> None:
        rows = [options] * len(indices) if isinstance(options, SamplingOptions) else list(options)
        rows = [seeded(row) for row in rows]
        self._device, self._count = device, len(rows)

        def column(values: Sequence[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)[:, None]

        penalties = [row.repetition_penalty for row in rows]
        self._penalty = column(penalties, torch.float32) if any(p != 1 for p in penalties) else None
        self._prompts = prompts
        self._seen: Tensor | None = None  # bool [places, V]: the tokens that a sequence holds
        self._places: dict[int, int] = {}  # of sequences in _seen
        self._samples = any(row.temperature > 0 for row in rows)
        if not self._samples:
            return
        self._keys, self._steps = [(row.seed or 0, index) for row, index in zip(rows, indices, strict=True)], steps
        self._draws: dict[int, np.ndarray] = {}  # of sequences that have begun
        greedy = [row.temperature == 0 for row in rows]
        self._greedy = column(greedy, torch.bool)[:, 0] if any(greedy) else None
        self._temperature = column([row.temperature or 1.0 for row in rows], torch.float64)
        top_k = [1 if row.temperature == 0 else min(row.top_k or _ALL, _ALL) for row in rows]
        self._top_k = column(top_k, torch.int64)
        self._largest_k = max(top_k)
        sampled = [row for row in rows if row.temperature > 0]
        self._has_top_k = any(row.top_k for row in sampled)
        self._has_top_p = any(row.top_p < 1 for row in sampled)
        self._has_min_p = any(row.min_p for row in sampled)
        # 1 must keep what rounding of the sums would cut off.
        self._top_p = column([row.top_p if row.top_p < 1 else math.inf for row in rows], torch.float64)
        self._log_min_p = column([math.log(row.min_p) if row.min_p else -math.inf for row in rows], torch.float64)

    @property
    def is_greedy(self) -> bool:
        """Whether :func:`greedy` is all that it does."""
        return not self._samples and self._penalty is None

    def __call__(self, logits: Tensor, step: int | Sequence[int], which: Sequence[int] | None = None) -> Tensor:
        """Choose the next tokens.

        Args:
            logits: ``[B, V]``.
            step: how many tokens each sequence had from here before: one number for all or one for each.
            which: the sequence of each row; None for all in order.

        Returns:
            int64 ``[B]``; ``NOT_FINITE`` for a row with NaN or infinity as its peak.
        """
        which = range(self._count) if which is None else which
        if self.is_greedy:
            return greedy(logits)
        rows = torch.tensor(which, dtype=torch.int64, device="cpu").to(self._device, non_blocking=True)
        scores, places = logits, None
        if self._penalty is not None:
            places = self._places_of(which, logits.shape[-1])
            scores = self._penalise(logits.float(), self._penalty[rows], places)
        tokens = greedy(scores)
        if self._samples:
            drawn = self._draw(scores.float(), rows, self._uniforms(which, step))
            chosen = drawn if self._greedy is None else torch.where(self._greedy[rows], tokens, drawn)
            tokens = torch.where(tokens < 0, NOT_FINITE, chosen)
        if self._seen is not None and places is not None:
            self._seen[places, tokens.clamp(min=0)] = True
        return tokens

    def forget(self, sequence: int) -> None:
        """Free what is kept for a sequence that has ended."""
        self._places.pop(sequence, None)
        if self._samples:
            self._draws.pop(sequence, None)

    def _uniforms(self, which: Sequence[int], step: int | Sequence[int]) -> Tensor:
        """float64 ``[B]`` in [0, 1)."""
        steps = [step] * len(which) if isinstance(step, int) else step
        for sequence in which:
            if sequence not in self._draws:
                self._draws[sequence] = _uniform(*self._keys[sequence], self._steps)
        values = [self._draws[sequence][at] for sequence, at in zip(which, steps, strict=True)]
        return torch.tensor(values, dtype=torch.float64, device="cpu").to(self._device, non_blocking=True)

    def _places_of(self, which: Sequence[int], vocabulary: int) -> Tensor:
        """int64 ``[B]``: the places of sequences in ``_seen``, where those that are new get theirs."""
        if self._seen is None:
            self._seen = torch.zeros((0, vocabulary), dtype=torch.bool, device=self._device)
        free = sorted(set(range(len(self._seen))) - set(self._places.values()), reverse=True)
        new = [sequence for sequence in which if sequence not in self._places]
        if (missing := len(new) - len(free)) > 0:
            free[:0] = range(len(self._seen) + missing - 1, len(self._seen) - 1, -1)
            more = torch.zeros((missing, vocabulary), dtype=torch.bool, device=self._device)
            self._seen = torch.cat([self._seen, more])
        for sequence in new:
            place = self._places[sequence] = free.pop()
            self._seen[place] = False
            if self._prompts:
                ids = torch.tensor(self._prompts[sequence], dtype=torch.int64, device="cpu").to(self._device)
                self._seen[place, ids] = True
        places = [self._places[sequence] for sequence in which]
        return torch.tensor(places, dtype=torch.int64, device="cpu").to(self._device, non_blocking=True)

    def _penalise(self, logits: Tensor, penalty: Tensor, places: Tensor) -> Tensor:
        assert self._seen is not None
        penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
        return torch.where(self._seen[places], penalised, logits)

    def _draw(self, scores: Tensor, rows: Tensor, uniform: Tensor) -> Tensor:
        """Inverse transform sampling among the tokens that the options leave."""
        peaks, temperature = scores.amax(-1, keepdim=True).double(), self._temperature[rows]
        scaled = _scaled(scores, peaks, temperature)
        weights = scaled.exp()
        if self._has_top_k or self._has_top_p:
            # The tokens that count are among the first; the smallest one that stays is found there.
            first = scores.topk(min(self._largest_k, scores.shape[-1])).values  # sorted
            first = _scaled(first, peaks, temperature)
            floor = first.gather(-1, self._top_k[rows].clamp(max=first.shape[-1]) - 1)
            weights = weights.masked_fill(scaled < floor, 0.0)
            if self._has_top_p:
                floor = _nucleus(first, self._top_p[rows] * weights.sum(-1, keepdim=True))
                weights = weights.masked_fill(scaled < floor, 0.0)
        if self._has_min_p:
            weights = weights.masked_fill(scaled < self._log_min_p[rows], 0.0)
        return _inverse_transform(weights, uniform)


def _scaled(scores: Tensor, peaks: Tensor, temperature: Tensor) -> Tensor:
    """In float64, and the peak comes off first: the smallest temperature must not overflow at the peak."""
    return (scores.double() - peaks) / temperature


def _nucleus(first: Tensor, share: Tensor) -> Tensor:
    """The score ``[B, 1]`` of the least likely token of the nucleus: it is the first to reach the share of weights."""
    weights = first.exp()
    before = weights.cumsum(-1) - weights
    count = (before < share).sum(-1, keepdim=True)
    return first.gather(-1, count.clamp(min=1) - 1)


def _inverse_transform(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first token whose cumulative weight exceeds the draw's share of the whole."""
    cumulative = weights.cumsum(-1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
    # Rounding can put the threshold on the sum itself: then the last token that has any weight.
    last = weights.shape[-1] - 1 - (weights > 0).flip(-1).int().argmax(-1)
    return torch.minimum(index, last)


def _uniform(seed: int, index: int, count: int) -> np.ndarray:
    """float64 ``[count]`` in [0, 1), of each seed and index a stream of its own. Source: Philox, Salmon et al. 2011."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64))).random(count)
