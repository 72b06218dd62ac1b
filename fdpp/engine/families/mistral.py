"""Mistral: Llama's layers, with a sliding window in each, or in those that ``layer_types`` names (Ministral)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fdpp.engine.config import DecoderConfig
from fdpp.engine.families.base import Family, decoder_config, layer_windows, sliding_window


def read_config(config: Mapping[str, Any]) -> DecoderConfig:
    return decoder_config(config, windows=layer_windows(config, sliding_window(config)))


MISTRAL = Family("Mistral", "mistral", read_config, gguf_rope_permuted=True)
