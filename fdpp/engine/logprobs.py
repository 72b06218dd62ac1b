"""Log-probabilities of the tokens that were chosen and of their likeliest rivals."""

from __future__ import annotations

import torch
from torch import Tensor


class LogprobRecorder:
    """Collects them step by step on the device; they are read once, at the end.

    They are the model's own: the natural logarithm of its softmax, before any sampling option.

    Args:
        count: the number of likeliest tokens to keep at each step beside the chosen one.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._tokens: list[Tensor] = []
        self._logprobs: list[Tensor] = []

    def add(self, logits: Tensor, tokens: Tensor) -> None:
        """Take the logits ``[B, V]`` of a step and the tokens int64 ``[B]`` that were chosen; below 0: none."""
        logits = logits.double()
        likeliest = logits.topk(min(self._count, logits.shape[-1])).indices
        kept = torch.cat([likeliest, tokens.clamp(min=0)[:, None]], dim=-1)
        self._tokens.append(kept)
        self._logprobs.append(logits.gather(-1, kept) - logits.logsumexp(-1, keepdim=True))

    def read(self) -> list[list[dict[int, float]]]:
        """Per sequence and step, log-probability by token: the likeliest first, and the chosen one."""
        tokens, logprobs = (torch.stack(steps, dim=1).tolist() for steps in (self._tokens, self._logprobs))
        return [
            [dict(zip(ids, values, strict=True)) for ids, values in zip(row, row_logprobs, strict=True)]
            for row, row_logprobs in zip(tokens, logprobs, strict=True)
        ]
