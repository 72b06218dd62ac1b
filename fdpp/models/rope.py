"""The rotary embedding of a Hugging Face ``config.json``, whose keys have changed names and places over the years.

Where two places disagree, the order is that of transformers (``RotaryEmbeddingConfigMixin``): ``rope_scaling``, which
people add by hand, replaces ``rope_parameters``, which transformers 5 writes; what stands inside it wins over the same
key at the top level, except for ``original_max_position_embeddings``, which wins at the top level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from fdpp.checks import check_number
from fdpp.errors import CheckpointError
from fdpp.rope_config import (
    DynamicScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    YarnScaling,
    yarn_magnitude,
)


def rope_config(config: Mapping[str, Any]) -> RopeConfig:
    """Read ``config.json``.

    Raises:
        CheckpointError: an unknown kind, or a value that is missing, of the wrong type or out of its bounds.
    """
    parameters = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(parameters, Mapping):
        raise CheckpointError(f"rope_parameters: expected an object, got {parameters!r:.80}")
    if nested := [key for key, value in parameters.items() if isinstance(value, Mapping)]:
        raise CheckpointError(f"rope_parameters: expected one set for all layers, got one for {nested[0]!r:.80}")
    theta = first(parameters.get("rope_theta"), config.get("rope_theta"), 10000.0)
    kind = first(parameters.get("rope_type"), parameters.get("type"), "default")
    if not isinstance(kind, str) or kind not in _READERS:
        raise CheckpointError(f"rope_type: expected one of {sorted(_READERS)}, got {kind!r:.80}")
    return RopeConfig(theta, **_READERS[kind](parameters, config))


def rotary_dim(config: Mapping[str, Any], head_dim: int) -> int:
    """The elements of a head that are rotated: ``partial_rotary_factor``, by older configs ``rotary_pct``, of them.

    Raises:
        CheckpointError: the factor is no number in 0..1, or leaves a number of elements that has no halves.
    """
    parameters = config.get("rope_scaling") or config.get("rope_parameters") or {}
    factor = first(
        parameters.get("partial_rotary_factor"), config.get("partial_rotary_factor"), config.get("rotary_pct"), 1.0
    )
    check_number("partial_rotary_factor", factor, 0.0, 1.0)
    rotated = int(head_dim * factor)
    if rotated % 2:
        raise CheckpointError(f"partial_rotary_factor: expected an even number of {head_dim} elements, got {rotated}")
    return rotated


def context_length(config: Mapping[str, Any], rope: RopeConfig) -> Any:
    """The most tokens of a sequence: ``max_position_embeddings``, or more where dynamic or YaRN scaling says so.

    Configs of scaled models state there either the length after the scaling or the one before it.
    """
    stated = config.get("max_position_embeddings")
    if type(stated) is not int or not isinstance(rope.scaling, DynamicScaling | YarnScaling):
        return stated
    return max(stated, int(rope.scaling.factor * rope.scaling.original_max_positions))


def first(*candidates: Any) -> Any:
    """The first of the candidates that is not None."""
    return next((value for value in candidates if value is not None), None)


def _value(source: Mapping[str, Any], key: str) -> Any:
    """What the file says, None where it says nothing: the classes of the scalings check it."""
    return source.get(key)


def _linear(parameters: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    return {"linear_factor": parameters.get("factor")}


def _dynamic(parameters: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    return {"scaling": DynamicScaling(_value(parameters, "factor"), _value(config, "max_position_embeddings"))}


def _llama3(parameters: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    scaling = Llama3Scaling(
        factor=_value(parameters, "factor"),
        low_freq_factor=_value(parameters, "low_freq_factor"),
        high_freq_factor=_value(parameters, "high_freq_factor"),
        original_max_positions=_original_length(parameters, config),
    )
    return {"scaling": scaling}


def _yarn(parameters: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    scaling = YarnScaling(
        factor=_stretch(parameters, config),
        original_max_positions=_original_length(parameters, config),
        beta_fast=parameters.get("beta_fast") or 32,
        beta_slow=parameters.get("beta_slow") or 1,
        truncate=first(parameters.get("truncate"), True),
    )
    attention = first(parameters.get("attention_factor"), _yarn_attention(parameters, scaling.factor))
    return {"scaling": scaling, "attention_factor": attention}


def _longrope(parameters: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    original, stretch = _original_length(parameters, config), _stretch(parameters, config)
    scaling = LongRopeScaling(
        short_factors=_numbers("short_factor", parameters),
        long_factors=_numbers("long_factor", parameters),
        original_max_positions=original,
    )
    attention = parameters.get("attention_factor")
    if attention is None:
        check_number("rope factor", stretch, 1e-3, 1e6)
        attention = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 and original > 1 else 1.0
    return {"scaling": scaling, "attention_factor": attention}


_READERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]] = {
    "default": lambda parameters, config: {},
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def _yarn_attention(parameters: Mapping[str, Any], factor: float) -> float:
    scale, scale_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if not scale or not scale_all:
        return yarn_magnitude(factor)
    check_number("rope mscale", scale, 1e-3, 1e3)
    check_number("rope mscale_all_dim", scale_all, 1e-3, 1e3)
    return yarn_magnitude(factor, scale) / yarn_magnitude(factor, scale_all)


def _original_length(parameters: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    key = "original_max_position_embeddings"
    return first(config.get(key), parameters.get(key), config.get("max_position_embeddings"))


def _stretch(parameters: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    """``factor``, or by how much the context has grown."""
    original, now = _original_length(parameters, config), config.get("max_position_embeddings")
    if parameters.get("factor") is None and type(original) is int and type(now) is int and original > 0:
        return now / original
    return parameters.get("factor")


def _numbers(key: str, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
    if not isinstance(values := parameters.get(key), list):
        raise CheckpointError(f"rope {key}: expected a list of numbers, got {values!r:.80}")
    return tuple(values)
