"""Rotary frequencies and the tables of their cosines and sines."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fdpp.engine.config import Llama3Scaling, RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """float32 ``[head_dim / 2]``, radians per position. Source: RoFormer, arXiv 2104.09864, section 3.2.2.

    Computed in float32 and in this order so that the tables equal those that the models were trained with.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.llama3 is not None:
        frequencies = _llama3(frequencies, rope.llama3)
    return frequencies / rope.linear_factor


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Stretch wavelengths > ``original / low`` by the factor, keep those < ``original / high``, blend between."""
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((scaling.original_max_positions / wavelengths - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - keep) * frequencies / scaling.factor + keep * frequencies


def tables(frequencies: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32 ``[length, head_dim / 2]`` each."""
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device="cpu"), frequencies)
    return angles.cos(), angles.sin()
