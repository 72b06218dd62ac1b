"""Loading of the compiled libraries: the core always, the library of another backend when it is asked for."""

from __future__ import annotations

import functools
import importlib


@functools.cache
def load(library: str = "_core"):
    """Import ``fdpp.<library>``, which registers its operators with torch, and return the module.

    Raises:
        ImportError: the library was not built, or was built for something else; the message says how to build it.
    """
    import torch  # noqa: F401  (its shared libraries must be in the process before ours)

    try:
        return importlib.import_module(f"fdpp.{library}")
    except ImportError as error:
        raise ImportError(
            f"fdpp's compiled library '{library}' cannot be loaded ({error}). Build it with "
            f"`pip install --no-build-isolation .` in the source tree, with the torch that you run."
        ) from error
