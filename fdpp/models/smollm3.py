"""SmolLM3: Llama, with layers that rotate nothing. Source: https://huggingface.co/blog/smollm3."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fdpp.checks import check_integer
from fdpp.engine.model import Model
from fdpp.errors import CheckpointError
from fdpp.models.config import UNLIMITED, flag, layer_count, layer_windows, sliding_window
from fdpp.models.llama import assemble


def build(config: Mapping[str, Any], stored: Collection[str]) -> Model:
    bias, count = flag(config, "attention_bias"), layer_count(config)
    window = sliding_window(config, None) if flag(config, "use_sliding_window") else UNLIMITED
    return assemble(
        config,
        stored,
        windows=layer_windows(config, window),
        rotated=_rotated(config, count),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=flag(config, "mlp_bias"),
        tied_embeddings=flag(config, "tie_word_embeddings", True),
    )


def _rotated(config: Mapping[str, Any], count: int) -> list[bool]:
    """Which layers rotate: by ``no_rope_layers``, where 1 stands for those that do, or all but every n-th."""
    listed = config.get("no_rope_layers")
    if listed is None:
        check_integer("no_rope_layer_interval", interval := config.get("no_rope_layer_interval", 4), 1, 1 << 16)
        return [bool((index + 1) % interval) for index in range(count)]
    if not isinstance(listed, list) or len(listed) != count or any(value not in (0, 1) for value in listed):
        raise CheckpointError(f"no_rope_layers: expected {count} times 0 or 1, got {listed!r:.80}")
    return [bool(value) for value in listed]
