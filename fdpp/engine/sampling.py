"""From logits to tokens, on the device of the logits and without reading anything back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fdpp.errors import RequestError

NOT_FINITE = -1  # in place of a token where the logits hold NaN or infinity


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose a token.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: only the ``top_k`` likeliest tokens; 0 means all.
        top_p: then only the likeliest tokens that together reach this probability (nucleus sampling).
        seed: makes the draw repeatable; None takes one from torch's global generator.

    Raises:
        RequestError: an option out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.temperature) or self.temperature < 0:
            raise RequestError(f"temperature: expected a number >= 0, got {self.temperature!r:.80}")
        if type(self.top_k) is not int or self.top_k < 0:
            raise RequestError(f"top_k: expected an integer >= 0, got {self.top_k!r:.80}")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise RequestError(f"top_p: expected a number in (0, 1], got {self.top_p!r:.80}")
        if self.seed is not None and (type(self.seed) is not int or not 0 <= self.seed < 1 << 63):
            raise RequestError(f"seed: expected an integer in 0..2**63-1, got {self.seed!r:.80}")


class Sampler:
    """Chooses the tokens of a batch, step by step.

    Each sequence has a generator of its own, whose numbers are drawn beforehand: what it says does not depend on the
    batch that it shares.

    Args:
        options: how to choose.
        indices: the number of each sequence in the request; with the seed it determines its draws.
        steps: the largest number of tokens of a sequence.
        device: of the logits.
    """

    def __init__(self, options: SamplingOptions, indices: Sequence[int], steps: int, device: torch.device) -> None:
        self._options = options
        if options.temperature > 0:
            seed = int(torch.randint(1 << 62, ())) if options.seed is None else options.seed
            draws = [_uniform(seed + index, steps) for index in indices]
            self._draws = torch.stack(draws, dim=1).to(device)  # [steps, B]

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        """The tokens int64 ``[B]`` for logits ``[B, V]``; ``NOT_FINITE`` for a row with NaN or infinity as its peak."""
        peaks, likeliest = logits.max(dim=-1)  # NaN counts as the largest
        tokens = likeliest if self._options.temperature == 0 else self._draw(logits.float(), self._draws[step])
        return torch.where(peaks.isfinite(), tokens, NOT_FINITE)

    def _draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Inverse transform sampling: the first token whose cumulative probability exceeds the draw."""
        options = self._options
        count = min(options.top_k or logits.shape[-1], logits.shape[-1])
        # The peak comes off first: a tiny temperature must not overflow.
        logits = (logits - logits.amax(-1, keepdim=True)) / options.temperature
        if count == logits.shape[-1] and options.top_p == 1:
            return _inverse_transform(logits.softmax(-1, dtype=torch.float64), uniform)
        logits, order = logits.topk(count)  # sorted
        probabilities = logits.softmax(-1, dtype=torch.float64)
        before = probabilities.cumsum(-1) - probabilities
        kept = probabilities.masked_fill(before >= options.top_p, 0.0)
        return order.gather(-1, _inverse_transform(kept, uniform)[:, None])[:, 0]


def _inverse_transform(weights: Tensor, uniform: Tensor) -> Tensor:
    cumulative = weights.cumsum(-1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
    # Rounding can put the threshold on the sum itself: then the last token that has any weight.
    last = weights.shape[-1] - 1 - (weights > 0).flip(-1).int().argmax(-1)
    return torch.minimum(index, last)


def _uniform(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed % (1 << 63))
    return torch.rand(count, dtype=torch.float64, generator=generator)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
