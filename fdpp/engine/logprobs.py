"""Log-probabilities of the tokens that were chosen and of their likeliest rivals."""

from __future__ import annotations

import torch
from torch import Tensor

from fdpp.engine.sequence import Sequence


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
        self._sequences: list[list[Sequence]] = []

    def add(self, logits: Tensor, tokens: Tensor, sequences: list[Sequence]) -> None:
        """Take the logits ``[B, V]`` of a step and the tokens int64 ``[B]`` that sequences got; below 0: none."""
        logits = logits.double()
        likeliest = logits.topk(min(self._count, logits.shape[-1])).indices
        kept = torch.cat([likeliest, tokens.clamp(min=0)[:, None]], dim=-1)
        self._tokens.append(kept)
        self._logprobs.append(logits.gather(-1, kept) - logits.logsumexp(-1, keepdim=True))
        self._sequences.append(sequences)

    def hand_out(self) -> None:
        """Give each sequence its own: by step, log-probability by token, the likeliest first, and the chosen one."""
        for tokens, logprobs, sequences in zip(self._tokens, self._logprobs, self._sequences, strict=True):
            for sequence, ids, values in zip(sequences, tokens.tolist(), logprobs.tolist(), strict=True):
                if sequence.logprobs is not None and len(sequence.logprobs) < len(sequence.token_ids):
                    sequence.logprobs.append(dict(zip(ids, values, strict=True)))
