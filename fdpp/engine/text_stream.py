"""Tokens to text as they come: whole characters only, and nothing that a stop string might still take back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"  # what a decoder puts for bytes that are not UTF-8, a character's first bytes among them


class IncrementalDecoder:
    """Decodes a growing list of tokens, a piece at a time.

    Tokens are decoded together with those of the piece before, because a decoder may treat the first token of a
    text differently (SentencePiece drops its space).
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []  # those of the last piece and those still pending
        self._shown = 0  # how many of them are in the text already

    def push(self, token: int) -> str:
        """The text that is new and certain with this token."""
        self._ids.append(token)
        text = self._pending()
        if not text or text.endswith(_INCOMPLETE):
            return ""
        self._ids, self._shown = self._ids[self._shown :], len(self._ids) - self._shown
        return text

    def finish(self) -> str:
        """What is pending still, without a character that was never completed."""
        return self._pending().rstrip(_INCOMPLETE)

    def _pending(self) -> str:
        return self._decode(self._ids)[len(self._decode(self._ids[: self._shown])) :]


class StopMatcher:
    """Holds text back as long as it may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may be shown, and whether a stop string has been found right after it."""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            return self._release(min(found)), True
        return self._release(len(self._held) - self._possible_start()), False

    def finish(self) -> str:
        """The rest: no stop string came."""
        return self._release(len(self._held))

    def _release(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        return shown

    def _possible_start(self) -> int:
        """The length of the longest end of the held text that a stop string begins with."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        candidates = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in candidates if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0)


class TextStream:
    """The text of one sequence; what it shows, put together, is :attr:`text`.

    Args:
        decode: token ids to text.
        stops: strings that end the text and are not part of it.
        show: called with each piece of text.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stops: Sequence[str], show: Callable[[str], None]
    ) -> None:
        self._decoder = IncrementalDecoder(decode)
        self._matcher = StopMatcher(stops)
        self._show = show
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def push(self, token: int) -> bool:
        """Take a token; True when the text has met a stop string."""
        piece, stopped = self._matcher.push(self._decoder.push(token))
        self._add(piece)
        return stopped

    def finish(self) -> bool:
        """The tokens have ended: show what was held back; True when that completed a stop string."""
        piece, stopped = self._matcher.push(self._decoder.finish())
        self._add(piece if stopped else piece + self._matcher.finish())
        return stopped

    def _add(self, piece: str) -> None:
        if piece:
            self._pieces.append(piece)
            self._show(piece)
