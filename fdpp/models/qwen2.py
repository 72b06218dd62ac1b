"""Qwen2 and Qwen2.5: biases on the query, key and value projections."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fdpp.engine.model import Model
from fdpp.models.config import qwen_windows
from fdpp.models.llama import assemble


def build(config: Mapping[str, Any], stored: Collection[str]) -> Model:
    return assemble(config, stored, qkv_bias=True, windows=qwen_windows(config))
