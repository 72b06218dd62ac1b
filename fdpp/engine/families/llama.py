"""Llama 2 and 3, and what shares their layers: SmolLM2, TinyLlama, Yi, ..."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fdpp.engine.config import DecoderConfig
from fdpp.engine.families.base import Family, decoder_config


def read_config(config: Mapping[str, Any]) -> DecoderConfig:
    bias = config.get("attention_bias", False)
    return decoder_config(
        config,
        qkv_bias=bias,
        o_bias=config.get("attention_output_bias", bias),
        mlp_bias=config.get("mlp_bias", False),
    )


LLAMA = Family("Llama", "llama", read_config, gguf_rope_permuted=True)
