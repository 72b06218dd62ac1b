"""Qwen2 and Qwen2.5: biases on the query, key and value projections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fdpp.engine.config import DecoderConfig
from fdpp.engine.families.base import Family, decoder_config, qwen_windows


def read_config(config: Mapping[str, Any]) -> DecoderConfig:
    return decoder_config(config, qkv_bias=True, windows=qwen_windows(config))


QWEN2 = Family("Qwen2", "qwen2", read_config)
