"""Tokens that are guessed ahead: of which sequences and how many, and what became of them.

A step reads all weights, whether it appends one token to a sequence or eight. So a step appends the last token and some
guesses, the model says what it would have chosen after each of them, and as many guesses are kept as it would have
chosen itself, with the token that follows them. A token is chosen by the draw of its place, guessed or not, so that
sampled text, too, is what it is without guesses.

Source: Leviathan et al., arXiv 2211.17192. Theirs accept with a probability instead, which takes other draws.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Protocol

from fdpp.engine import sequence

WIDTHS = (8, 4, 2)  # tokens of a row that a step may have: each is captured by itself
MOST_TOKENS = 16  # of a step: from there on its products are bound by arithmetic
_LEAST_RATE = 0.15  # of guesses accepted: with fewer, a step that is longer by one guess costs more than it brings
_FIRST_PAUSE = 32  # tokens
_TILE = 64  # keys; kAttentionTile of csrc/cpu/kernels.h


class Guesser(Protocol):
    """Says how texts may go on. A text is known by a number."""

    def begin(self, lengths: Sequence[int], rows: int) -> None:
        """Forget all texts; those that come get so long, and ``rows`` of them are there at a time."""

    def guess(self, texts: Mapping[int, list[int]], count: int) -> dict[int, list[int]]:
        """Up to ``count`` tokens that may follow each text, the likeliest continuation first; fewer, or none."""

    def forget(self, number: int) -> None:
        """A text has ended."""


class Trust:
    """How many tokens to guess for a sequence: more while guesses are right, none for a while when few are."""

    def __init__(self) -> None:
        self._count, self._rate = 3, 0.5
        self._resume, self._pause = 0, _FIRST_PAUSE

    def count(self, length: int) -> int:
        """How many when the sequence has that many tokens."""
        return self._count if length >= self._resume else 0

    def learn(self, guessed: int, accepted: int, length: int) -> None:
        """Take what became of guesses after that many tokens."""
        self._rate += (accepted / guessed - self._rate) / 4
        if accepted == guessed:
            self._count = min(2 * self._count + 1, WIDTHS[0] - 1)
        elif 2 * accepted < guessed:
            self._count = max(self._count // 2, 1)
        if self._rate < _LEAST_RATE:
            self._resume, self._pause = length + self._pause, 2 * self._pause
            self._count, self._rate = 1, 0.5


def step_width(guesses: Sequence[int], rows: int, room: int) -> int:
    """How many tokens per row a step should have.

    Args:
        guesses: how many there are for each sequence.
        rows: of the step, some of which may idle.
        room: the most tokens per row.

    Returns:
        the largest of WIDTHS that at least half of the guesses fill; else 1.
    """
    for width in WIDTHS:
        filled = sum(min(count, width - 1) for count in guesses)
        if width <= room and rows * width <= MOST_TOKENS and 2 * filled >= rows * (width - 1):
            return width
    return 1


def same_splits(length: int) -> int:
    """How many tokens a step of a CPU may append so that attention cuts the keys for all as for the first of them.

    Decode attention cuts them at multiples of a tile, by their number in whole tiles. With the same cuts, a sequence
    has the bits that it has without guesses.

    Args:
        length: of the sequence with the first of the tokens.
    """
    return _TILE - length % _TILE if length % _TILE else 1


class Speculation:
    """The guesses of a request.

    Args:
        guesser: makes them.
        lengths: the most tokens of each sequence of the request.
        rows: how many sequences are there at a time.
    """

    def __init__(self, guesser: Guesser, lengths: Sequence[int], rows: int) -> None:
        self._guesser = guesser
        self._trust: defaultdict[int, Trust] = defaultdict(Trust)
        self._guessed: dict[int, int] = {}  # of the step that is on its way, by sequence
        guesser.begin(lengths, rows)

    def tokens(self, running: Mapping[int, sequence.Sequence], rows: int, room: int) -> dict[int, list[int]]:
        """What to append to each sequence: its last token and guesses, equally many for all; {} where none would pay.

        Args:
            running: the sequences by their numbers; all of their tokens are known.
            rows, room: as in :func:`step_width`.
        """
        texts = {number: [*one.prompt, *one.token_ids] for number, one in running.items()}
        counts = {number: self._trust[number].count(len(text)) for number, text in texts.items()}
        width = step_width(list(counts.values()), rows, room)
        guesses: dict[int, list[int]] = {}
        if width > 1:
            wanted = {number: text for number, text in texts.items() if counts[number]}
            guesses = self._guesser.guess(wanted, min(max(counts.values()), width - 1))
            guesses = {number: found[: counts[number]] for number, found in guesses.items()}
            width = step_width([len(found) for found in guesses.values()], rows, room)
        if width == 1:
            return {}
        self._guessed = {number: min(len(found), width - 1) for number, found in guesses.items()}
        # What fills the rest is as good a guess as any.
        return {
            number: (text[-1:] + guesses.get(number, []) + text[-1:] * width)[:width] for number, text in texts.items()
        }

    def learn(self, number: int, one: sequence.Sequence, accepted: int) -> None:
        """Take how many of the tokens after its last one a sequence got to keep."""
        guessed = self._guessed.get(number, 0)
        one.timings.guessed_tokens += max(guessed, accepted)
        one.timings.accepted_tokens += accepted
        if guessed:
            self._trust[number].learn(guessed, min(accepted, guessed), len(one.prompt) + one.launched)

    def forget(self, number: int) -> None:
        self._guesser.forget(number)
        self._trust.pop(number, None)
