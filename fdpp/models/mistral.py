"""Mistral: Llama's layers, with a sliding window in each, or in those that ``layer_types`` names (Ministral)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fdpp.engine.model import Model
from fdpp.models.config import layer_windows, sliding_window
from fdpp.models.llama import assemble


def build(config: Mapping[str, Any], stored: Collection[str]) -> Model:
    return assemble(config, stored, windows=layer_windows(config, sliding_window(config)))
