"""Rotary frequencies and the tables of their cosines and sines.

Computed in float32 and in the order of transformers, so that the tables equal those that the models were trained with.
Some scalings give long sequences other frequencies: a prompt is rotated with those of its whole length, and every token
after it with those of the length that the sequence then has, while the keys before it stay as they are.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fdpp.engine.part import Part
from fdpp.errors import CheckpointError
from fdpp.rope_config import DynamicScaling, Llama3Scaling, LongRopeScaling, RopeConfig, YarnScaling
from fdpp.weights import Source, Weight

Tables = tuple[Tensor, Tensor]
"""Cosines and sines, float32 ``[positions, head_dim / 2]``."""

_DIVISORS = "rope_freqs.weight"
_RESERVING = threading.Lock()  # not one per embedding: a lock can be neither copied nor pickled


class Rotary(Part):
    """A rotary position embedding, which the attentions of a model may share.

    Args:
        config: what the frequencies are.
        head_dim: the elements of a head that are rotated, the first ones; 0 rotates nothing.
        interleaved: whether the pairs that are rotated are neighbours; otherwise the halves of the elements are paired.
        has_divisors: whether the checkpoint has a table of numbers by which the frequencies are divided: llama.cpp
            stores Llama 3's scaling as such a table.

    Raises:
        CheckpointError: LongRoPE's factors do not fit the head length.
    """

    def __init__(
        self, config: RopeConfig, head_dim: int, interleaved: bool = False, has_divisors: bool = False
    ) -> None:
        if isinstance(scaling := config.scaling, LongRopeScaling):
            for name, factors in (("short_factor", scaling.short_factors), ("long_factor", scaling.long_factors)):
                if len(factors) != head_dim // 2:
                    raise CheckpointError(f"rope {name}: expected {head_dim // 2} numbers, got {len(factors)}")
        self.config, self.head_dim, self.interleaved = config, head_dim, interleaved
        self.divisors = Weight((Source(_DIVISORS, (head_dim // 2,)),), dtype=torch.float32) if has_divisors else None
        self.tables = _no_tables(head_dim)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"tables": _no_tables(self.head_dim)}  # the next request reserves them

    def reserve(self, length: int, device: torch.device) -> None:
        """Make the tables cover positions below ``length``, at least. They never shrink.

        Raises:
            CheckpointError: the divisors are not positive.
        """
        with _RESERVING:
            if length > len(self.tables[0]):
                self.tables = self._on_device(step_tables, length, device)

    def prompt_tables(self, length: int) -> Tables:
        """The tables of a prompt: those of the steps, unless the prompt's length changes the frequencies."""
        if not self.depends_on(length):
            return self.tables
        return self._on_device(prompt_tables, length, self.tables[0].device)

    def depends_on(self, length: int) -> bool:
        """Whether a prompt of that length has tables of its own."""
        limit = changes_beyond(self.config)
        return limit is not None and length > limit

    def _on_device(self, tables: Callable[..., Tables], length: int, device: torch.device) -> Tables:
        divisors = None if self.divisors is None else self.divisors.tensor.cpu()
        if divisors is not None and not (divisors > 0).all():
            raise CheckpointError(f"{_DIVISORS}: expected positive numbers")
        cos, sin = tables(self.config, self.head_dim, length, divisors)
        return cos.to(device), sin.to(device)


def _no_tables(head_dim: int) -> Tables:
    return 2 * (torch.empty(0, head_dim // 2, dtype=torch.float32, device="cpu"),)


def inverse_frequencies(rope: RopeConfig, head_dim: int, lengths: Tensor | None = None) -> Tensor:
    """Radians per position. Source: RoFormer, arXiv 2104.09864, section 3.2.2.

    Args:
        lengths: int64 ``[N]``, lengths of sequences; None for one that the original context holds.

    Returns:
        float32 ``[N, head_dim / 2]``, or ``[1, head_dim / 2]`` where the length does not matter.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    lengths = torch.ones(1, dtype=torch.int64, device="cpu") if lengths is None else lengths
    return _scaled(rope, exponents, lengths[:, None]) / rope.linear_factor


def changes_beyond(rope: RopeConfig) -> int | None:
    """The longest sequence that still has the frequencies of short ones; None where all lengths have the same."""
    scaling = rope.scaling
    return scaling.original_max_positions if isinstance(scaling, DynamicScaling | LongRopeScaling) else None


def step_tables(rope: RopeConfig, head_dim: int, length: int, divisors: Tensor | None = None) -> Tables:
    """Cosines and sines for tokens that come one by one: row p belongs to a sequence of p + 1 tokens.

    Args:
        divisors: float32 ``[head_dim / 2]`` by which the frequencies are divided.

    Returns:
        two float32 tensors ``[length, head_dim / 2]``.
    """
    return _tables(rope, head_dim, length, divisors, torch.arange(1, length + 1, dtype=torch.int64, device="cpu"))


def prompt_tables(rope: RopeConfig, head_dim: int, length: int, divisors: Tensor | None = None) -> Tables:
    """As :func:`step_tables`, for a prompt of ``length`` tokens that is rotated as a whole."""
    return _tables(rope, head_dim, length, divisors, torch.tensor([length], dtype=torch.int64, device="cpu"))


def _tables(rope: RopeConfig, head_dim: int, length: int, divisors: Tensor | None, lengths: Tensor) -> Tables:
    frequencies = inverse_frequencies(rope, head_dim, lengths if changes_beyond(rope) is not None else None)
    if divisors is not None:
        frequencies = frequencies / divisors
    angles = torch.arange(length, dtype=torch.float32, device="cpu")[:, None] * frequencies
    return angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor


def _scaled(rope: RopeConfig, exponents: Tensor, lengths: Tensor) -> Tensor:
    scaling = rope.scaling
    if isinstance(scaling, DynamicScaling):
        return _dynamic(rope.theta, exponents, scaling, lengths)
    if isinstance(scaling, YarnScaling):
        return _yarn(rope.theta, exponents, scaling)[None]
    if isinstance(scaling, LongRopeScaling):
        return _longrope(rope.theta, exponents, scaling, lengths)
    frequencies = 1.0 / rope.theta**exponents
    return (frequencies if scaling is None else _llama3(frequencies, scaling))[None]


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Stretch wavelengths > ``original / low`` by the factor, keep those < ``original / high``, blend between."""
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((scaling.original_max_positions / wavelengths - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - keep) * frequencies / scaling.factor + keep * frequencies


def _dynamic(theta: float, exponents: Tensor, scaling: DynamicScaling, lengths: Tensor) -> Tensor:
    """A base for each length. Source: https://www.reddit.com/r/LocalLLaMA/comments/14mrgpr."""
    original, head_dim = scaling.original_max_positions, 2 * len(exponents)
    stretch = scaling.factor * lengths.to(torch.float32) / original - (scaling.factor - 1)
    longer = 1.0 / (theta * stretch ** (head_dim / (head_dim - 2))) ** exponents
    return torch.where(lengths > original, longer, 1.0 / theta**exponents)


def _yarn(theta: float, exponents: Tensor, scaling: YarnScaling) -> Tensor:
    """Source: YaRN, arXiv 2309.00071, section 3.2."""
    count, head_dim = len(exponents), 2 * len(exponents)
    low, high = (
        head_dim * math.log(scaling.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    stretch = ((torch.arange(count, dtype=torch.float32, device="cpu") - low) / width).clamp(0.0, 1.0)
    wavelengths = theta**exponents
    keep = 1 - stretch
    return 1.0 / (scaling.factor * wavelengths) * (1 - keep) + 1.0 / wavelengths * keep


def _longrope(theta: float, exponents: Tensor, scaling: LongRopeScaling, lengths: Tensor) -> Tensor:
    """Source: LongRoPE, arXiv 2402.13753."""
    short, long = (
        torch.tensor(factors, dtype=torch.float32, device="cpu")
        for factors in (scaling.short_factors, scaling.long_factors)
    )
    return 1.0 / (torch.where(lengths > scaling.original_max_positions, long, short) * theta**exponents)
