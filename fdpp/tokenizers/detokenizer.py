"""Token ids to text as they come: whole characters only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

_REPLACEMENT = "\ufffd"  # what a decoder puts for bytes that are not UTF-8; it may also be real text


@dataclass(frozen=True)
class Detokenizer:
    """Token ids to text, and what the text does not tell.

    Attributes:
        decode: ids to text; special tokens give none, bytes that are no UTF-8 give U+FFFD.
        special: the special tokens and their spellings.
        continuations: runs of tokens. Whatever character has been begun, one of them completes it; where tokens are
            never parts of characters, or nothing is known, there are none.
    """

    decode: Callable[[Sequence[int]], str]
    special: Mapping[int, str] = field(default_factory=dict)
    continuations: Sequence[Sequence[int]] = ()

    def __call__(self, ids: Sequence[int]) -> str:
        return self.decode(ids)


class IncrementalDecoder:
    """Decodes a growing list of tokens, a piece at a time.

    Tokens are decoded together with those of the piece before, because a decoder may treat the first token of a
    text differently (SentencePiece drops its space).
    """

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._decode = detokenizer
        self._ids: list[int] = []  # those of the last piece and those still pending
        self._shown = 0  # how many of them are in the text already

    def push(self, token: int) -> str:
        """The text that is new and certain with this token."""
        self._ids.append(token)
        text = self._pending()
        if not text or (text.endswith(_REPLACEMENT) and self._may_go_on()):
            return ""
        self._release()
        return text

    def finish(self) -> str:
        """What is pending still, without a character that was never completed."""
        text = self._pending()
        if text.endswith(_REPLACEMENT) and (completed := self._completed()):
            text = completed[:-1]
        self._release()
        return text

    def _release(self) -> None:
        self._ids, self._shown = self._ids[self._shown :], len(self._ids) - self._shown

    def _may_go_on(self) -> bool:
        """Whether U+FFFD at the end may be the beginning of a character."""
        return not self._decode.continuations or bool(self._completed())

    def _completed(self) -> str:
        """The pending text with its last character completed; nothing where there is no character to complete."""
        texts = map(self._pending, self._decode.continuations)
        return next((text for text in texts if not text.endswith(_REPLACEMENT)), "")

    def _pending(self, more: Sequence[int] = ()) -> str:
        return self._decode([*self._ids, *more])[len(self._decode(self._ids[: self._shown])) :]
