"""Whether two models compute the same, before their weights are loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from fdpp.engine.part import Part
from fdpp.engine.rope import Rotary
from fdpp.rope_config import Llama3Scaling
from fdpp.weights import Weight

_ROUNDED = 1e-6  # files keep numbers in float32


def first_difference(own: object, other: object, names: Mapping[str, str]) -> str | None:
    """The first thing that differs, in one line; None where the models are the same.

    Args:
        names: from the names of the first one's tensors to those of the second one's.
    """
    mine, theirs = dict(_facts("", own)), dict(_facts("", other))
    mine = {where: names.get(value, value) if isinstance(value, str) else value for where, value in mine.items()}
    for name in (*mine, *theirs):
        if not _is_same(mine.get(name), theirs.get(name)):
            return f"{name} {mine.get(name)!r:.40} would be read as {theirs.get(name)!r:.40}"
    return None


def _facts(name: str, value: object) -> Iterator[tuple[str, Any]]:
    """Every number and text below a value, by where it stands."""
    if isinstance(value, Rotary):
        value = _rotation(value)
    elif isinstance(value, Weight):
        value = {"sources": value.sources, "interleaved": value.interleaved, "offset": value.offset}
    elif isinstance(value, Part):
        names = vars(value) if hasattr(value, "__dict__") else value.__slots__
        value = {name: getattr(value, name) for name in names if not name.startswith("_")}
    elif is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        yield name, value
        return
    for key, below in value.items():
        yield from _facts(f"{name}.{key}" if name else str(key), below)


def _rotation(rotary: Rotary) -> dict[str, object]:
    """Llama 3's scaling is a table of divisors in a GGUF file, and three numbers in a config."""
    if rotary.head_dim == 0:
        return {"head_dim": 0}
    is_divided = rotary.divisors is not None or isinstance(rotary.config.scaling, Llama3Scaling)
    config = {field.name: getattr(rotary.config, field.name) for field in fields(rotary.config)}
    config |= {"scaling": "divisors"} if is_divided else {}
    return config | {"head_dim": rotary.head_dim, "interleaved": rotary.interleaved}


def _is_same(own: Any, other: Any) -> bool:
    if isinstance(own, float) and isinstance(other, float | int):
        return math.isclose(own, other, rel_tol=_ROUNDED)
    return bool(own == other)
