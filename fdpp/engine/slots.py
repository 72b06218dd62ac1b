"""What a step reads of each row of a batch, and the step itself: eager, then captured and replayed."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from fdpp import dataflow
from fdpp.engine.kv_cache import KVCache
from fdpp.engine.model import Model
from fdpp.engine.sampling import greedy
from fdpp.errors import one_line

Step = Callable[[], Tensor]
"""One step of a batch. All that changes from step to step is in tensors that it reads and writes in place."""
Capture = Callable[[Step], Step]
"""From a step, without running it, to one that does the same and returns the same tensor each time."""

# A capture costs as much as some steps. On a GPU it takes 10 to 30 ms for a model of 16 to 32 layers, and saves about
# 1 ms in each step that follows.
MIN_STEPS = 16


class Slots:
    """The rows of a batch over a cache; one that holds no sequence idles.

    Args:
        model: with its weights, and tables that cover the cache.
        cache: **mutated** by steps; it says how many rows there are.
        capture: how to capture a step; None runs all of them eagerly.
    """

    def __init__(self, model: Model, cache: KVCache, capture: Capture | None) -> None:
        self._model, self.cache, self._capture = model, cache, capture

        def filled(value: int, dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.full((cache.rows, *shape), value, dtype=dtype, device=model.device)

        self.tokens = filled(0, torch.int64)
        self._positions = filled(-1, torch.int32, 1)
        self._seqlens, self._advance = filled(0, torch.int32), filled(0, torch.int32)
        self._wide: dict[tuple[int, int], _Inputs] = {}  # of steps of several tokens, by rows and tokens
        self._captured: dict[tuple[int, int, bool], tuple[Step, object]] = {}
        self._warm: set[tuple[int, int, bool]] = set()
        self._settings: object = None  # under which steps were captured

    def seat(self, rows: list[int], lengths: list[int], tokens: Tensor) -> None:
        """Let rows begin that hold ``lengths`` tokens, and whose next ones are ``tokens`` int64 ``[len(rows)]``."""
        self._set(rows, lengths, 1)
        self.tokens[rows] = tokens

    def idle(self, rows: list[int]) -> None:
        """Leave rows out of the steps that follow."""
        if rows:
            self._set(rows, [0] * len(rows), 0)

    def move(self, source: int, target: int) -> None:
        """Let row ``target`` go on where ``source`` is, which idles from now on."""
        for tensor in (self.tokens, self._positions, self._seqlens, self._advance):
            tensor[target] = tensor[source]
        self.idle([source])

    def _set(self, rows: list[int], lengths: list[int], advance: int) -> None:
        device = self.tokens.device
        seqlens = torch.tensor(lengths, dtype=torch.int32, device="cpu").to(device, non_blocking=True)
        self._seqlens[rows] = seqlens
        self._positions[rows, 0] = seqlens - 1
        self._advance[rows] = advance

    def step(self, rows: int, is_greedy: bool, steps_left: int) -> Tensor:
        """Append the tokens of the first rows, and predict the next ones.

        Args:
            rows: how many.
            is_greedy: whether the likeliest tokens replace those that were there.
            steps_left: the most steps that will follow, to tell whether a capture pays.

        Returns:
            the tokens int64 ``[rows]`` where that is greedy, or the logits ``[rows, V]``. The next call overwrites
            them.
        """
        return self._replay((rows, 1, is_greedy), lambda: self._run(rows, is_greedy), steps_left)

    def extend(self, tokens: list[list[int]], lengths: list[int], is_greedy: bool, steps_left: int) -> Tensor:
        """Append equally many tokens to each of the first rows, and predict what follows each of them.

        Where a row goes on is then for :meth:`seat` to say.

        Args:
            tokens: of each row.
            lengths: how many each row holds before them; -1 for a row that idles.
            is_greedy, steps_left: as in :meth:`step`.

        Returns:
            the likeliest tokens int64 ``[rows, tokens]`` where that is greedy, or the logits ``[rows, tokens, V]``. The
            next call overwrites them.
        """
        rows, width = len(tokens), len(tokens[0])
        if (rows, width) not in self._wide:
            self._wide[rows, width] = _Inputs(rows, width, self.tokens.device)
        inputs = self._wide[rows, width]
        inputs.fill(tokens, lengths)
        cache = self.cache.part(slice(0, rows))

        def run() -> Tensor:
            # On a CPU the bits are those of steps of one token.
            with dataflow.chosen_by_rows(width):
                logits = self._model.extend(inputs.tokens, inputs.positions, inputs.seqlens, cache)
            return greedy(logits.flatten(0, 1)).view(rows, width) if is_greedy else logits

        return self._replay((rows, width, is_greedy), run, steps_left)

    def _replay(self, key: tuple[int, int, bool], run: Step, steps_left: int) -> Tensor:
        settings = torch.get_num_threads(), dataflow.generation(), self._model.version
        if settings != self._settings:
            self._settings = settings
            self._captured.clear()
        if key in self._captured:
            return self._captured[key][0]()
        if self._capture is None or key not in self._warm or steps_left < MIN_STEPS:
            self._warm.add(key)  # a first step loads all that it needs
            return run()
        # What the model replaces, and a captured step reads, lives as long as that.
        self._captured[key] = _captured(run, self._capture), self._model.step_tables()
        return self._captured[key][0]()

    def _run(self, rows: int, is_greedy: bool) -> Tensor:
        first = slice(0, rows)
        positions, seqlens, advance = self._positions[first], self._seqlens[first], self._advance[first]
        positions.add_(advance[:, None])
        seqlens.add_(advance)
        logits = self._model.step(self.tokens[first].clamp(min=0), positions, seqlens, self.cache.part(first))
        return self.tokens[first].copy_(greedy(logits)) if is_greedy else logits


class _Inputs:
    """What a step of several tokens per row reads, written from the host before each."""

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        self.tokens = torch.zeros((rows, width), dtype=torch.int64, device=device)
        self.positions = torch.zeros((rows, width), dtype=torch.int32, device=device)
        self.seqlens = torch.zeros(rows, dtype=torch.int32, device=device)

    def fill(self, tokens: list[list[int]], lengths: list[int]) -> None:
        width = self.tokens.shape[1]
        positions = [range(length, length + width) if length >= 0 else [-1] * width for length in lengths]
        seqlens = [length + width if length >= 0 else 0 for length in lengths]
        for tensor, values in ((self.tokens, tokens), (self.positions, positions), (self.seqlens, seqlens)):
            tensor.copy_(torch.tensor(values, dtype=tensor.dtype, device="cpu"), non_blocking=True)


def _captured(step: Step, capture: Capture) -> Step:
    try:
        return capture(step)
    except RuntimeError as error:  # of CUDA, of memory, or of an operator that cannot be captured
        warnings.warn(f"the decode step runs eagerly: it cannot be captured: {one_line(error)}", stacklevel=2)
        return step
