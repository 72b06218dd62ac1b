"""fdpp: decoding of large language models with the techniques of FlashDecoding++.

``import fdpp`` registers ``torch.ops.fdpp.*`` and needs torch alone; ``fdpp.LLM`` needs the extra ``models``.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from fdpp.working_directory import existing_directory

if TYPE_CHECKING:
    from fdpp import ops
    from fdpp.dataflow import explain
    from fdpp.engine.prompt_cache import PromptCache
    from fdpp.llm import LLM

try:
    __version__ = version("fdpp")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["LLM", "PromptCache", "__version__", "explain", "ops"]

_LAZY = {"LLM": "fdpp.llm", "PromptCache": "fdpp.engine.prompt_cache", "explain": "fdpp.dataflow"}


def __getattr__(name: str) -> object:
    if name not in ("ops", *_LAZY):
        raise AttributeError(f"module 'fdpp' has no attribute {name!r}")
    with existing_directory():  # torch asks for one
        module = importlib.import_module(_LAZY.get(name, "fdpp.ops"))
    return module if name == "ops" else getattr(module, name)


def _is_command() -> bool:
    """Whether this process is the command ``fdpp`` or ``python -m fdpp``."""
    program = sys.argv[0] if getattr(sys, "argv", None) else ""
    if program == "-m":  # as long as Python looks for the module
        return ("-m", "fdpp") in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    return os.path.basename(program) == "fdpp"


# A program finds the operators registered. The command says --help without torch, which takes a second to import.
if not _is_command():
    __getattr__("ops")
