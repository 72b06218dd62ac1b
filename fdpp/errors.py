"""The exceptions that fdpp raises for input it cannot use. Every message is one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class FdppError(Exception):
    """Base of all of them."""


class CheckpointError(FdppError):
    """A model that cannot be used: unreadable, truncated, inconsistent, or of an unknown architecture."""


class RequestError(FdppError, ValueError):
    """A request that cannot be answered: a bad prompt, bad sampling options, more tokens than the model's context."""


@contextlib.contextmanager
def about(model: object) -> Iterator[None]:
    """Put the name of the model or file before the message of a :class:`CheckpointError`."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{model}: {error}") from error


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of another library's exception as one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
