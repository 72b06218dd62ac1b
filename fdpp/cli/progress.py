"""A progress bar on stderr, for people: nothing is written when stderr is not a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

WIDTH = 30


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[..., None] | None]:
    """Give a function ``(done, total, name="")`` that draws a bar, None without a terminal; wipe the bar at the end."""
    if not sys.stderr.isatty():
        yield None
        return

    def draw(done: int, total: int, name: str = "") -> None:
        filled = WIDTH * done // max(total, 1)
        sys.stderr.write(f"\r\033[K[{'#' * filled:<{WIDTH}}] {done}/{total} {name[:40]}")
        sys.stderr.flush()

    try:
        yield draw
    finally:
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()
