"""Ministral: Mistral under a name of its own, with the window in the layers that ``layer_types`` names."""

from __future__ import annotations

from fdpp.models.mistral import build

__all__ = ["build"]
