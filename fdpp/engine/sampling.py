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


class Sampler:
    """Chooses the tokens of a batch, step by step.

    The draws of a sequence depend on its seed, its index and the step alone, and are made beforehand: what it says does
    not depend on the batch that it shares. An option that no sequence uses costs nothing.

    Args:
        options: how to choose, for all sequences or one for each.
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

        def column(values: Sequence[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)[:, None]

        penalties = [row.repetition_penalty for row in rows]
        self._penalty = column(penalties, torch.float32) if any(p != 1 for p in penalties) else None
        self._prompts = prompts
        self._seen: Tensor | None = None
        self._samples = any(row.temperature > 0 for row in rows)
        if not self._samples:
            return
        draws = np.stack([_uniform(row.seed or 0, index, steps) for row, index in zip(rows, indices, strict=True)], 1)
        self._draws = torch.from_numpy(draws).to(device)  # [steps, B]
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

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        """The tokens int64 ``[B]`` for logits ``[B, V]``; ``NOT_FINITE`` for a row with NaN or infinity as its peak."""
        scores = logits if self._penalty is None else self._penalise(logits.float(), self._penalty)
        peaks, likeliest = scores.max(dim=-1)  # NaN counts as the largest
        tokens = likeliest
        if self._samples:
            tokens = self._draw(scores.float(), self._draws[step])
            if self._greedy is not None:
                tokens = torch.where(self._greedy, likeliest, tokens)
        tokens = torch.where(peaks.isfinite(), tokens, NOT_FINITE)
        if self._seen is not None:
            self._seen.scatter_(1, tokens.clamp(min=0)[:, None], True)
        return tokens

    def _penalise(self, logits: Tensor, penalty: Tensor) -> Tensor:
        if self._seen is None:
            self._seen = _marked(self._prompts, logits)
        penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
        return torch.where(self._seen, penalised, logits)

    def _draw(self, scores: Tensor, uniform: Tensor) -> Tensor:
        """Inverse transform sampling among the tokens that the options leave."""
        peaks = scores.amax(-1, keepdim=True).double()
        scaled = self._scaled(scores, peaks)
        weights = scaled.exp()
        if self._has_top_k or self._has_top_p:
            # The tokens that count are among the first; the smallest one that stays is found there.
            first = scores.topk(min(self._largest_k, scores.shape[-1])).values  # sorted
            first = self._scaled(first, peaks)
            floor = first.gather(-1, self._top_k.clamp(max=first.shape[-1]) - 1)
            weights = weights.masked_fill(scaled < floor, 0.0)
            if self._has_top_p:
                floor = self._nucleus(first, weights.sum(-1, keepdim=True))
                weights = weights.masked_fill(scaled < floor, 0.0)
        if self._has_min_p:
            weights = weights.masked_fill(scaled < self._log_min_p, 0.0)
        return _inverse_transform(weights, uniform)

    def _scaled(self, scores: Tensor, peaks: Tensor) -> Tensor:
        """In float64, and the peak comes off first: the smallest temperature must not overflow at the peak."""
        return (scores.double() - peaks) / self._temperature

    def _nucleus(self, first: Tensor, total: Tensor) -> Tensor:
        """The score ``[B, 1]`` of the least likely token of the nucleus: it is the first to reach its share."""
        weights = first.exp()
        before = weights.cumsum(-1) - weights
        count = (before < self._top_p * total).sum(-1, keepdim=True)
        return first.gather(-1, count.clamp(min=1) - 1)


def _marked(rows: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
    """bool, in the shape ``[B, V]`` of the logits: which tokens each row holds."""
    marked = torch.zeros(logits.shape, dtype=torch.bool, device="cpu")
    for row, ids in zip(marked, rows, strict=bool(rows)):
        row[torch.tensor(ids, dtype=torch.int64, device="cpu")] = True
    return marked.to(logits.device)


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
