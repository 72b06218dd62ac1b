"""Qwen3: RMS norms on every query and key head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fdpp.engine.config import DecoderConfig
from fdpp.engine.families.base import Family, decoder_config, qwen_windows


def read_config(config: Mapping[str, Any]) -> DecoderConfig:
    bias = config.get("attention_bias", False)
    # Unlike its siblings, Qwen3 has heads of 128 whatever the hidden size.
    head_dim = 128 if config.get("head_dim") is None else config["head_dim"]
    return decoder_config(
        config, head_dim=head_dim, qkv_bias=bias, o_bias=bias, qk_norm=True, windows=qwen_windows(config)
    )


QWEN3 = Family("Qwen3", "qwen3", read_config)
