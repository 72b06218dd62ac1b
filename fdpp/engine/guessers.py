"""Who guesses how a text goes on: the text itself, which may repeat what it holds already, or a smaller model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fdpp.engine.kv_cache import Pool
from fdpp.engine.model import Model
from fdpp.engine.prefill import common_length, prefill
from fdpp.engine.slots import MIN_STEPS, Capture, Slots

_MATCH = 3  # tokens
_CANDIDATES = 16  # the last places of a text that are compared
_COMPARED = 32  # tokens before each of them


class Ngrams:
    """What followed the last tokens of a text where it held them before: prompt look-up.

    It goes on from the place that has most in common with the end of the text, from the later one of two. A
    continuation that reaches the end of the text begins again.

    Source: Saxena, prompt-lookup-decoding, 2023.
    """

    def __init__(self) -> None:
        self._indexes: defaultdict[int, _Index] = defaultdict(_Index)

    def begin(self, lengths: Sequence[int], rows: int) -> None:
        self._indexes.clear()

    def guess(self, texts: Mapping[int, list[int]], count: int) -> dict[int, list[int]]:
        found = {number: self._indexes[number].find(text) for number, text in texts.items()}
        return {
            number: [texts[number][place + i % (len(texts[number]) - place)] for i in range(count)]
            for number, place in found.items()
            if place is not None
        }

    def forget(self, number: int) -> None:
        self._indexes.pop(number, None)


class _Index:
    """The places of a text, which grows, that follow each run of tokens."""

    def __init__(self) -> None:
        self._places: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        self._seen = _MATCH  # places before it are in

    def find(self, text: list[int]) -> int | None:
        """The place that is like the end of the text."""
        for place in range(self._seen, len(text)):
            self._places[tuple(text[place - _MATCH : place])].append(place)
        self._seen = max(self._seen, len(text))
        candidates = self._places.get(tuple(text[-_MATCH:]), [])[-_CANDIDATES:]
        return max(candidates, key=lambda place: (_common_end(text, place), place), default=None)


def _common_end(text: list[int], place: int) -> int:
    """How many tokens before a place are those at the end of a text."""
    longest = min(place, _COMPARED)
    return next((i for i in range(longest) if text[place - 1 - i] != text[-1 - i]), longest)


class Draft:
    """What a smaller model says, greedily. Its caches outlive requests: what a text has in common with one before is
    not computed again.

    Args:
        model: with its weights. Its token ids have the meaning of the large model's.
        vocab_size: of the large model.
        capture: as in :class:`fdpp.engine.runner.Runner`.
    """

    def __init__(self, model: Model, vocab_size: int, capture: Capture | None) -> None:
        self._model, self._vocab_size, self._capture = model, vocab_size, capture
        self._pool = Pool(model.attentions, model.dtype, model.device, None)
        self._slots: Slots | None = None
        self._held: list[list[int]] = []  # by row: the tokens whose keys and values it holds
        self._rows: dict[int, int] = {}  # of texts

    def begin(self, lengths: Sequence[int], rows: int) -> None:
        """As :meth:`fdpp.engine.speculation.Guesser.begin`.

        Raises:
            RequestError: its key/value cache would not fit into memory.
        """
        lengths = [min(length, self._model.max_positions) for length in lengths]
        self._rows.clear()
        if self._slots is None or not self._pool.fits(lengths, rows):
            self._slots = None  # it holds the memory that is to be replaced
            cache = self._pool.begin(lengths, rows)
            self._slots, self._held = Slots(self._model, cache, self._capture), [[] for _ in range(cache.rows)]
        self._model.reserve(self._slots.cache.capacity)

    def guess(self, texts: Mapping[int, list[int]], count: int) -> dict[int, list[int]]:
        assert self._slots is not None
        room = min(self._slots.cache.capacity, self._model.max_positions)
        fitting = {
            self._row_of(number, text): text
            for number, text in texts.items()
            if len(text) + count <= room and max(text) < self._model.vocab_size
        }
        if not fitting:
            return {}
        self._catch_up(fitting)
        rows = sorted(fitting)
        device = self._model.device
        last = torch.tensor([fitting[row][-1] for row in rows], dtype=torch.int64, device="cpu").to(device)
        self._slots.idle(list(range(self._slots.cache.rows)))
        self._slots.seat(rows, [len(fitting[row]) - 1 for row in rows], last)
        steps: list[Tensor] = []
        for _ in range(count):
            steps.append(self._slots.step(rows[-1] + 1, is_greedy=True, steps_left=MIN_STEPS)[rows].clone())
        found = dict(zip(rows, torch.stack(steps, dim=1).tolist(), strict=True))
        for row, text in fitting.items():
            self._held[row] = text + found[row][:-1]
        numbers = {row: number for number, row in self._rows.items()}
        return {numbers[row]: self._known(tokens) for row, tokens in found.items()}

    def forget(self, number: int) -> None:
        self._rows.pop(number, None)

    def _row_of(self, number: int, text: list[int]) -> int:
        """The row of a text; a new one takes the free row that has most of it."""
        if number not in self._rows:
            free = set(range(len(self._held))) - set(self._rows.values())
            self._rows[number] = max(free, key=lambda row: (common_length(self._held[row], text), -row))
        return self._rows[number]

    def _catch_up(self, texts: Mapping[int, list[int]]) -> None:
        """Fill the rows up to the last token of each text."""
        assert self._slots is not None
        held = {row: common_length(self._held[row], text[:-1]) for row, text in texts.items()}
        for row, length in held.items():
            del self._held[row][length:]  # what follows is overwritten, if only in part where somebody interrupts
        behind = {row: text[:-1] for row, text in texts.items() if held[row] < len(text) - 1}
        if behind:
            cached = [held[row] for row in behind]
            prefill(self._model, list(behind.values()), self._slots.cache, cached, list(behind))

    def _known(self, tokens: list[int]) -> list[int]:
        """Those before the first one that is none, or none of the large model's."""
        ends = (place for place, token in enumerate(tokens) if not 0 <= token < self._vocab_size)
        return tokens[: next(ends, len(tokens))]
