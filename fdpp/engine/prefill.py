"""Prompts on their way into the cache: those of a request together, and what they have in common once.

A pass reads all weights, however many tokens it has, so tokens of several prompts share one. Only attention goes prompt
by prompt.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fdpp import dataflow
from fdpp.engine.attend import Attend, attend_prompt
from fdpp.engine.kv_cache import KVCache
from fdpp.engine.layers import Attention, Pass
from fdpp.engine.model import Model

CHUNK = 1024  # tokens of a pass; bounds the memory of activations and masks
LEAST_SHARED = 32  # tokens: to compute fewer a second time is cheaper than a pass that others wait for


@dataclass(frozen=True)
class Piece:
    """Positions ``start`` to ``stop`` of the prompt of a row."""

    row: int
    start: int
    stop: int


class Schedule:
    """Which pieces of prompts are computed together, and which rows take over what others have computed.

    Args:
        prompts: the tokens of each row.
        cached: how many of them its cache holds already; the last token of a prompt is never among them.
        kinds: rows of different kinds share no pass and no beginning.
        shares: whether common beginnings are taken over.
    """

    def __init__(
        self, prompts: Sequence[list[int]], cached: Sequence[int], kinds: Sequence[int], shares: bool = True
    ) -> None:
        self._prompts, self._kinds, self._done = prompts, kinds, list(cached)
        self._sources: dict[int, tuple[int, int]] = {}  # row: whose beginning it takes over, and how much
        # In the order of dictionaries, nobody before a row has more in common with it than its neighbour.
        order = sorted(range(len(prompts)), key=lambda row: (kinds[row], prompts[row]))
        for source, row in zip(order, order[1:], strict=False):
            common = common_length(prompts[source], prompts[row]) if kinds[source] == kinds[row] else 0
            is_twin = common == len(prompts[row])
            while source in self._sources and self._sources[source][1] >= common:
                source = self._sources[source][0]  # who has it first
            if is_twin or shares and common >= max(LEAST_SHARED, cached[row] + 1):
                self._sources[row] = source, common
        self._cuts: list[set[int]] = [set() for _ in prompts]  # where others take over
        for source, length in self._sources.values():
            self._cuts[source].add(length)

    def take_over(self) -> list[tuple[int, int, int]]:
        """What can be copied now, in this order: source, target, and the length of the beginning."""
        copies: list[tuple[int, int, int]] = []
        before = -1
        while len(copies) > before:
            before = len(copies)
            for row, (source, length) in list(self._sources.items()):
                if self._done[source] >= length:
                    copies.append((source, row, length))
                    self._done[row] = length
                    del self._sources[row]
        return copies

    def next_pieces(self) -> list[Piece]:
        """The pieces of the next pass, of one kind; none when all prompts are done."""
        pieces: list[Piece] = []
        room = CHUNK
        for row, prompt in enumerate(self._prompts):
            start = self._done[row]
            if start == len(prompt) or row in self._sources:
                continue
            if pieces and self._kinds[row] != self._kinds[pieces[0].row]:
                continue
            cut = min((cut for cut in self._cuts[row] if cut > start), default=len(prompt))
            # Where a piece ends depends on no other prompt, but for beginnings that are shared.
            stop = min(cut, start - start % CHUNK + CHUNK)
            if stop - start <= room:
                pieces.append(Piece(row, start, stop))
                room -= stop - start
        for piece in pieces:
            self._done[piece.row] = piece.stop
        return pieces


@dataclass(frozen=True)
class Prefilled:
    """
    Attributes:
        logits: ``[B, V]`` after the last token of each prompt.
        tokens: how many tokens of each prompt were computed.
        seconds: of each prompt, its share of the time of the passes that it was in.
    """

    logits: Tensor
    tokens: list[int]
    seconds: list[float]


@torch.inference_mode()
def prefill(
    model: Model,
    prompts: Sequence[list[int]],
    cache: KVCache,
    cached: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
) -> Prefilled:
    """Run prompts and predict their continuations.

    Args:
        model: with its weights, and tables that cover the prompts (:meth:`Model.reserve`).
        prompts: their tokens, at least one.
        cache: **mutated**: filled up to the length of each prompt.
        cached: how many tokens of each prompt it holds already, fewer than all; None for none.
        rows: of the cache, one for each prompt; None for its first ones.
    """
    cached = [0] * len(prompts) if cached is None else cached
    rows = range(len(prompts)) if rows is None else rows
    kinds = [model.prompt_kind(len(prompt)) for prompt in prompts]
    schedule = Schedule(prompts, cached, kinds, shares=not dataflow.is_batch_invariant())
    logits: list[Tensor | None] = [None] * len(prompts)
    tokens, seconds = [0] * len(prompts), [0.0] * len(prompts)
    while pieces := schedule.next_pieces():
        start = time.perf_counter()
        hidden = _run(model, pieces, prompts, cache, rows)
        last, ended = -1, []
        for piece in pieces:
            last += piece.stop - piece.start
            if piece.stop == len(prompts[piece.row]):
                ended.append((piece.row, last))
        if ended:
            found = model.head(hidden[[place for _, place in ended]])
            for (row, _), values in zip(ended, found, strict=True):
                logits[row] = values
        for source, row, length in schedule.take_over():
            cache.copy(rows[source], rows[row], length)
            if length == len(prompts[row]):
                logits[row] = logits[source]
        _synchronize(model.device)
        passed = time.perf_counter() - start
        for piece in pieces:
            count = piece.stop - piece.start
            tokens[piece.row] += count
            seconds[piece.row] += passed * count / (last + 1)
    return Prefilled(torch.stack([values for values in logits if values is not None]), tokens, seconds)


def _run(
    model: Model, pieces: Sequence[Piece], prompts: Sequence[list[int]], cache: KVCache, rows: Sequence[int]
) -> Tensor:
    """The normed output of the last layer for all tokens of the pieces, ``[T, H]``; appends to the cache."""
    flat = [
        (rows[piece.row], place, prompts[piece.row][place])
        for piece in pieces
        for place in range(piece.start, piece.stop)
    ]
    token_rows, positions, tokens = torch.tensor(flat, dtype=torch.int64, device="cpu").to(model.device).unbind(1)
    tables = model.prompt_tables(len(prompts[pieces[0].row]))
    attend = _attend_pieces(cache, pieces, rows, model.device)
    run = Pass(positions[:, None].int(), cache.pages_of(token_rows), tables, attend)
    return model.forward(tokens[:, None], cache, run)[:, 0]


def _attend_pieces(cache: KVCache, pieces: Sequence[Piece], rows: Sequence[int], device: torch.device) -> Attend:
    """Attention of the tokens of several prompts, each a sequence of its own: q ``[T, 1, Hq, D]``."""
    sizes = [piece.stop - piece.start for piece in pieces]
    attends = [attend_prompt(cache.row(rows[piece.row]), piece.start, piece.stop, device) for piece in pieces]

    def attend(attention: Attention, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        results = []
        for piece, one, part in zip(pieces, attends, q.transpose(0, 1).split(sizes, dim=1), strict=True):
            row = rows[piece.row]
            results.append(one(attention, part, cache.of_row(keys, row), cache.of_row(values, row)))
        return results[0] if len(results) == 1 else torch.cat(results, dim=1)

    return attend


def common_length(a: list[int], b: list[int]) -> int:
    """The length of the common beginning of two lists."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
