"""The text of a sequence as it comes, without anything that a stop string might still take back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fdpp.tokenizers.detokenizer import Detokenizer, IncrementalDecoder

_MARKS = range(0xD800, 0xDFFF)  # lone surrogates, which no decoder gives
_OTHER = "\udfff"  # the mark of a special token that no stop string holds


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

    Stop strings are found in the text, and where they hold special tokens, which the text does not show, among those.

    Args:
        decode: token ids to text: a :class:`Detokenizer`, or a function without special tokens.
        stops: strings that end the text and are not part of it.
        show: called with each piece of text.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stops: Sequence[str], show: Callable[[str], None]
    ) -> None:
        detokenizer = decode if isinstance(decode, Detokenizer) else Detokenizer(decode)
        self._special = detokenizer.special
        self._marks = _marks(detokenizer.special, stops)
        self._unmark = dict.fromkeys(map(ord, (*self._marks.values(), _OTHER)))
        self._decoder = IncrementalDecoder(detokenizer)
        marked = [_marked(stop, self._special, self._marks) for stop in stops] if self._marks else []
        self._special_matcher = StopMatcher(sorted(set(marked) - set(stops)))
        self._matcher = StopMatcher(stops)
        self._show = show
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def push(self, token: int) -> bool:
        """Take a token; True when the text has met a stop string."""
        if token not in self._special:
            return self._match(self._decoder.push(token))
        if not self._marks:
            return False
        return self._match(self._decoder.finish() + self._marks.get(token, _OTHER))  # no character goes on beyond it

    def finish(self) -> bool:
        """The tokens have ended: show what was held back; True when that completed a stop string."""
        return self._match(self._decoder.finish(), last=True)

    def _match(self, piece: str, last: bool = False) -> bool:
        piece, ended = self._special_matcher.push(piece)
        if last and not ended:
            piece += self._special_matcher.finish()
        piece, stopped = self._matcher.push(piece.translate(self._unmark))
        if (last or ended) and not stopped:
            piece += self._matcher.finish()
        self._add(piece)
        return ended or stopped

    def _add(self, piece: str) -> None:
        if piece:
            self._pieces.append(piece)
            self._show(piece)


def _marks(special: Mapping[int, str], stops: Sequence[str]) -> dict[int, str]:
    """A character of its own for each special token that a stop string holds."""
    wanted = [token for token, spelling in special.items() if spelling and any(spelling in stop for stop in stops)]
    return {token: chr(mark) for token, mark in zip(wanted, _MARKS, strict=False)}


def _marked(stop: str, special: Mapping[int, str], marks: Mapping[int, str]) -> str:
    """The stop string with its special tokens as marks, the longest spelling first."""
    for token in sorted(marks, key=lambda token: -len(special[token])):
        stop = stop.replace(special[token], marks[token])
    return stop
