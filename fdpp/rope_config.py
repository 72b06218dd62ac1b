"""The rotary position embedding of a model, as plain numbers that are checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fdpp.checks import check_flag, check_integer, check_number
from fdpp.errors import CheckpointError


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3's change of the rotary frequencies: long wavelengths are stretched by ``factor``, short ones stay."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        check_number("rope factor", self.factor, 1e-3, 1e6)
        check_number("rope low_freq_factor", self.low_freq_factor, 1e-3, 1e6)
        check_number("rope high_freq_factor", self.high_freq_factor, 1e-3, 1e6)
        check_integer("rope original_max_position_embeddings", self.original_max_positions, 1, 1 << 28)
        if self.high_freq_factor <= self.low_freq_factor:
            raise CheckpointError(
                f"rope high_freq_factor: expected more than low_freq_factor {self.low_freq_factor}, "
                f"got {self.high_freq_factor}"
            )


@dataclass(frozen=True)
class DynamicScaling:
    """Dynamic NTK: sequences longer than the original context get a larger base, the longer the larger."""

    factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        check_number("rope factor", self.factor, 1e-3, 1e6)
        check_integer("rope original_max_position_embeddings", self.original_max_positions, 1, 1 << 28)


@dataclass(frozen=True)
class YarnScaling:
    """YaRN: dimensions that turn fewer than ``beta_slow`` times in the original context are stretched by ``factor``,
    those that turn more than ``beta_fast`` times stay; ``truncate`` rounds the bounds between them outwards."""

    factor: float
    original_max_positions: int
    beta_fast: float
    beta_slow: float
    truncate: bool

    def __post_init__(self) -> None:
        check_number("rope factor", self.factor, 1e-3, 1e6)
        check_integer("rope original_max_position_embeddings", self.original_max_positions, 1, 1 << 28)
        check_number("rope beta_fast", self.beta_fast, 1e-6, 1e6)
        check_number("rope beta_slow", self.beta_slow, 1e-6, 1e6)
        check_flag("rope truncate", self.truncate)


@dataclass(frozen=True)
class LongRopeScaling:
    """LongRoPE: each frequency is divided by a number of its own, from one list for sequences that fit the original
    context and from another one for longer sequences. Each list has ``head_dim / 2`` entries."""

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_positions: int

    def __post_init__(self) -> None:
        check_integer("rope original_max_position_embeddings", self.original_max_positions, 1, 1 << 28)
        for name in ("short_factors", "long_factors"):
            for factor in getattr(self, name):
                check_number(f"rope {name}", factor, 1e-6, 1e6)


RopeScaling = Llama3Scaling | DynamicScaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: base, linear scaling of the positions, scaling of the frequencies, and the factor of
    cosines and sines by which a scaling sharpens the attention."""

    theta: float = 10000.0
    linear_factor: float = 1.0
    scaling: RopeScaling | None = None
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        # At 1, which no published model has, YaRN's bounds are not defined.
        check_number("rope_theta", self.theta, 1.0 if not isinstance(self.scaling, YarnScaling) else 1.001, 1e15)
        check_number("rope factor", self.linear_factor, 1e-3, 1e6)
        check_number("rope attention_factor", self.attention_factor, 1e-3, 1e3)


def yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    """By how much YaRN sharpens the attention (arXiv 2309.00071, section 3.4)."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
