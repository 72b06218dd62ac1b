"""fdpp inside transformers: importing it makes ``attn_implementation="fdpp"`` known, to every model of the process.

``accelerate(model)`` also replaces linear layers, norms and MLPs, and lets ``generate`` append to its cache in place;
``restore(model)`` takes all of it back.
"""

from __future__ import annotations

# The version comes first: it says what is wrong before transformers does.
from fdpp.integrations.transformers import _version, attention  # noqa: F401
from fdpp.integrations.transformers.acceleration import accelerate, restore
from fdpp.integrations.transformers.cache import append_in_place

__all__ = ["accelerate", "append_in_place", "restore"]

attention.register()
