"""What a decoder is made of, as plain numbers. Every value is checked here, before anything is allocated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fdpp.errors import CheckpointError

HEAD_DIMS = (64, 80, 96, 128, 192, 256)  # what decode_attention takes
UNLIMITED = -1  # a window that hides nothing

# No published decoder is near these bounds; beyond them a config is damaged or hostile.
_INTEGER_LIMITS = {
    "vocab_size": (1, 1 << 24),
    "hidden_size": (8, 1 << 18),
    "intermediate_size": (8, 1 << 20),
    "num_layers": (1, 4096),
    "num_heads": (1, 4096),
    "num_kv_heads": (1, 4096),
    "max_positions": (1, 1 << 28),
}


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise CheckpointError(f"{name}: expected an integer in {low}..{high}, got {value!r:.80}")


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Raise a CheckpointError unless the value is a finite number in ``low..high``."""
    if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
        raise CheckpointError(f"{name}: expected a number in {low:g}..{high:g}, got {value!r:.80}")


def _check_flag(name: str, value: object) -> None:
    if type(value) is not bool:
        raise CheckpointError(f"{name}: expected true or false, got {value!r:.80}")


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
        _check_integer("rope original_max_position_embeddings", self.original_max_positions, 1, 1 << 28)
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
        _check_integer("rope original_max_position_embeddings", self.original_max_positions, 1, 1 << 28)


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
        _check_integer("rope original_max_position_embeddings", self.original_max_positions, 1, 1 << 28)
        check_number("rope beta_fast", self.beta_fast, 1e-6, 1e6)
        check_number("rope beta_slow", self.beta_slow, 1e-6, 1e6)
        _check_flag("rope truncate", self.truncate)


@dataclass(frozen=True)
class LongRopeScaling:
    """LongRoPE: each frequency is divided by a number of its own, from one list for sequences that fit the original
    context and from another one for longer sequences. Each list has ``head_dim / 2`` entries."""

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_positions: int

    def __post_init__(self) -> None:
        _check_integer("rope original_max_position_embeddings", self.original_max_positions, 1, 1 << 28)
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


@dataclass(frozen=True)
class DecoderConfig:
    """A pre-norm decoder with RMS norms, rotary positions, grouped-query attention and a gated SiLU MLP.

    ``windows`` has one entry per layer: the attention window in the sense of :func:`fdpp.ops.decode_attention`
    (``-1``: no limit).

    Raises:
        CheckpointError: a value of the wrong type, out of its bounds, or at odds with another.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_positions: int
    rope: RopeConfig
    windows: tuple[int, ...]
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied_embeddings: bool

    def __post_init__(self) -> None:
        for name, (low, high) in _INTEGER_LIMITS.items():
            _check_integer(name, getattr(self, name), low, high)
        if type(self.head_dim) is not int or self.head_dim not in HEAD_DIMS:
            raise CheckpointError(f"head_dim: expected one of {HEAD_DIMS}, got {self.head_dim!r:.80}")
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"num_heads: expected a multiple of num_kv_heads {self.num_kv_heads}, got {self.num_heads}"
            )
        check_number("norm_eps", self.norm_eps, 0.0, 1.0)
        if isinstance(scaling := self.rope.scaling, LongRopeScaling):
            for name, factors in (("short_factor", scaling.short_factors), ("long_factor", scaling.long_factors)):
                if len(factors) != self.head_dim // 2:
                    raise CheckpointError(f"rope {name}: expected {self.head_dim // 2} numbers, got {len(factors)}")
        for name in ("qkv_bias", "o_bias", "mlp_bias", "qk_norm", "tied_embeddings"):
            _check_flag(name, getattr(self, name))
        if len(self.windows) != self.num_layers:
            raise CheckpointError(f"windows: expected {self.num_layers} entries, got {len(self.windows)}")
        for window in set(self.windows):
            _check_integer("window", window, UNLIMITED, 1 << 28)

    @property
    def qkv_rows(self) -> tuple[int, int, int]:
        """Output features of the query, key and value projections."""
        return self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim, self.num_kv_heads * self.head_dim
