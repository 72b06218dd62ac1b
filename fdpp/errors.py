"""The exceptions that fdpp raises for input it cannot use. Every message is one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class FdppError(Exception):
    """Base of all of them."""

    def __init__(self, message: str = "") -> None:
        super().__init__(" ".join(message.splitlines()))  # names of files and values may hold line breaks


class CheckpointError(FdppError):
    """A model that cannot be used: unreadable, truncated, inconsistent, or of an unknown architecture."""


class RequestError(FdppError, ValueError):
    """A request that cannot be answered: a bad prompt, bad sampling options, more tokens than the model's context."""


@contextlib.contextmanager
def prefix_errors(name: object) -> Iterator[None]:
    """Put the name of a model or file before the message of a :class:`CheckpointError`."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of another library's exception as one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def show(value: object, limit: int = 80) -> str:
    """A value for a message: the beginning of its ``repr`` in one line, after the type where that is no plain one."""
    kind = "" if value is None or type(value) in _PLAIN_TYPES else f"{type(value).__name__} "
    return (kind + " ".join(repr(value).split()))[:limit]


_PLAIN_TYPES = (bool, int, float, str, bytes, list, tuple, dict)
