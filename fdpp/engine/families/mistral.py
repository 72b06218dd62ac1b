"""Mistral: Llama's layers, with a sliding window in every one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fdpp.engine.config import DecoderConfig
from fdpp.engine.families.base import Family, decoder_config, every_layer, sliding_window


def read_config(config: Mapping[str, Any]) -> DecoderConfig:
    return decoder_config(config, windows=every_layer(config, sliding_window(config)))


MISTRAL = Family("MistralForCausalLM", "mistral", read_config, gguf_rope_permuted=True)
