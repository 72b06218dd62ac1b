"""Qwen3: RMS norms on every query and key head."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fdpp.engine.model import Model
from fdpp.models.config import flag, qwen_windows
from fdpp.models.llama import assemble
from fdpp.models.rope import first


def build(config: Mapping[str, Any], stored: Collection[str]) -> Model:
    bias = flag(config, "attention_bias")
    # Unlike its siblings, Qwen3 has heads of 128 whatever the hidden size.
    head_dim = first(config.get("head_dim"), 128)
    windows = qwen_windows(config)
    return assemble(config, stored, head_dim=head_dim, qkv_bias=bias, o_bias=bias, qk_norm=True, windows=windows)
