"""fdpp: decoding of large language models with the techniques of FlashDecoding++.

``import fdpp`` registers ``torch.ops.fdpp.*`` and needs torch alone; ``fdpp.LLM`` needs the extra ``models``.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from fdpp.working_directory import existing_directory

with existing_directory():
    from fdpp import ops

if TYPE_CHECKING:
    from fdpp.dataflow import explain
    from fdpp.llm import LLM

try:
    __version__ = version("fdpp")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["LLM", "__version__", "explain", "ops"]

_LAZY = {"LLM": "fdpp.llm", "explain": "fdpp.dataflow"}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fdpp' has no attribute {name!r}")
