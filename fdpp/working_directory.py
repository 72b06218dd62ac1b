"""The current directory of the process, which another process may have deleted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def existing_directory() -> Iterator[None]:
    """Stand in a directory that exists: torch's MKL ends a process that loads it from one that was deleted."""
    try:
        os.getcwd()
    except FileNotFoundError:
        here = os.open(".", os.O_RDONLY)
        os.chdir("/")
    else:
        yield
        return
    try:
        yield
    finally:
        os.fchdir(here)
        os.close(here)
