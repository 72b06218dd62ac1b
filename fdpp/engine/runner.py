"""The loop around the model: sequences take a row each, step side by side, and leave their row to the next."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from fdpp import dataflow
from fdpp.engine.graph import HostCopy
from fdpp.engine.kv_cache import Pool
from fdpp.engine.logprobs import LogprobRecorder
from fdpp.engine.model import Model
from fdpp.engine.prefill import LEAST_SHARED, common_length, prefill
from fdpp.engine.prompt_cache import PromptCache
from fdpp.engine.sampling import NOT_FINITE, Sampler
from fdpp.engine.sequence import Sequence
from fdpp.engine.slots import Capture, Slots
from fdpp.engine.speculation import Guesser, Speculation, same_splits
from fdpp.errors import FdppError


class Runner:
    """Decodes requests one after the other, with one cache and the same captured steps.

    Args:
        model: with its weights.
        max_rows: the most sequences side by side.
        page_size: tokens per page of the key/value cache; None for a contiguous one.
        capture: how to capture a step; None runs it eagerly.
        guesser: guesses tokens ahead; None for none.
    """

    def __init__(
        self,
        model: Model,
        max_rows: int,
        page_size: int | None,
        capture: Capture | None,
        guesser: Guesser | None = None,
    ) -> None:
        self._model, self._max_rows, self._page_size, self._capture = model, max_rows, page_size, capture
        self._guesser = guesser
        self._pool = Pool(model.attentions, model.dtype, model.device, page_size)
        self._slots: dict[int, Slots] = {}  # by the capacity of a row

    @torch.inference_mode()
    def run(
        self,
        sequences: list[Sequence],
        eos_token_ids: frozenset[int],
        logprobs: int | None = None,
        kept: PromptCache | None = None,
    ) -> None:
        """Complete all sequences. **Mutates** them.

        Args:
            sequences: as many as there are, at least one.
            eos_token_ids: the tokens that end a text.
            logprobs: the number of likeliest tokens whose log-probabilities are kept; None keeps none at all.
            kept: for a single sequence: the cache that it goes on with, and leaves to the next request.

        Raises:
            FdppError: the logits are not finite.
            RequestError: the key/value cache would not fit into memory.
        """
        # The last token is never fed back, so its slot is not needed.
        lengths = [len(sequence.prompt) + sequence.max_new_tokens - 1 for sequence in sequences]
        rows = min(len(sequences), self._max_rows)
        speculation = None if self._guesser is None else Speculation(self._guesser, lengths, rows)
        if kept is not None:
            slots, cached = kept.begin(self._model, sequences[0].prompt, lengths[0], self._page_size, self._capture)
            request = _Request(self._model, slots, None, sequences, 1, eos_token_ids, logprobs, speculation)
            try:
                request.run(self._ahead, cached)
            finally:  # the last token has not been fed
                kept.token_ids = [*sequences[0].prompt, *sequences[0].token_ids[:-1]]
            return
        if not self._pool.fits(lengths, rows):
            self._slots.clear()  # they hold the memory that is to be replaced
        cache = self._pool.begin(lengths, rows)
        slots = self._slots.setdefault(cache.capacity, Slots(self._model, cache, self._capture))
        request = _Request(self._model, slots, self._pool, sequences, rows, eos_token_ids, logprobs, speculation)
        request.run(self._ahead)

    @property
    def _ahead(self) -> int:
        """The number of steps that are launched before the tokens of a step are waited for.

        A GPU computes while the host looks at what the step before has given, eager or captured: the order of events
        decides how many rows a step has, and with them how sums are split, so both must have the same order.
        """
        return int(self._model.device.type != "cpu" and self._guesser is None)  # guesses go on from what is there


class Runners(list[Runner]):
    """Those of a model that nobody uses now. A copy begins with none: captured steps belong to their memory."""

    def __reduce__(self) -> tuple[type[Runners], tuple[()]]:
        return Runners, ()


class _Request:
    """The sequences of one request on their way through the rows of a batch."""

    def __init__(
        self,
        model: Model,
        slots: Slots,
        pool: Pool | None,
        sequences: list[Sequence],
        rows: int,
        eos_token_ids: frozenset[int],
        logprobs: int | None,
        speculation: Speculation | None,
    ) -> None:
        self._model, self._slots, self._pool, self._rows = model, slots, pool, rows
        self._eos_token_ids, self._speculation = eos_token_ids, speculation
        self._sequences, self._waiting = sequences, deque(enumerate(sequences))
        self._seated: dict[int, int] = {}  # from rows to the numbers of sequences
        self._idle: list[int] = []  # rows whose sequences get no more tokens from steps
        self._pending: deque[tuple[HostCopy, list[int]]] = deque()  # tokens, and whose they are
        self._recorder = None if logprobs is None else LogprobRecorder(logprobs)
        self._sampler = Sampler(
            [sequence.sampling for sequence in sequences],
            [sequence.index for sequence in sequences],
            max(sequence.max_new_tokens for sequence in sequences),
            model.device,
            [sequence.prompt for sequence in sequences],
        )

    def run(self, ahead: int, cached: int = 0) -> None:
        self._slots.idle(list(range(self._slots.cache.rows)))  # whatever a request before has left
        self._model.reserve(self._slots.cache.capacity)
        while self._waiting or self._seated:
            self._admit(cached)
            if self._speculation is not None:
                self._read(0)
            is_launched = self._launch()
            self._read(ahead if is_launched else 0)
        rereferences = int(self._slots.cache.rereferences.sum())
        for sequence in self._sequences:
            sequence.timings.rereferences = rereferences
        if self._recorder is not None:
            self._recorder.hand_out()

    def _admit(self, cached: int) -> None:
        """Give free rows to sequences that wait, compute their prompts, and choose their first tokens."""
        free = [row for row in range(self._rows) if row not in self._seated][: len(self._waiting)]
        if not free:
            return
        cache = self._slots.cache
        numbers, held = [], []
        for row in free:
            number, sequence = self._waiting.popleft()
            numbers.append(number)
            if self._pool is not None:
                self._pool.seat(row, len(sequence.prompt) + sequence.max_new_tokens - 1)
                cached = self._take_over(row, sequence.prompt)
            held.append(cached)
        prompts = [self._sequences[number].prompt for number in numbers]
        begun = prefill(self._model, prompts, cache, held, free)
        for number, computed, seconds in zip(numbers, begun.tokens, begun.seconds, strict=True):
            timings = self._sequences[number].timings
            timings.prompt_tokens, timings.prompt_tokens_computed = len(self._sequences[number].prompt), computed
            timings.prompt_seconds = seconds
        tokens = self._choose(begun.logits, numbers)
        self._slots.seat(free, [len(prompt) for prompt in prompts], tokens)
        self._seated |= dict(zip(free, numbers, strict=True))
        self._launched(tokens, numbers)

    def _take_over(self, row: int, prompt: list[int]) -> int:
        """Copy what a prompt has in common with that of another row; its length."""
        kind = self._model.prompt_kind(len(prompt))
        if dataflow.is_batch_invariant() or not self._seated:
            return 0
        others = {other: self._sequences[number].prompt for other, number in self._seated.items()}
        common = {
            other: common_length(theirs, prompt[:-1])
            for other, theirs in others.items()
            if self._model.prompt_kind(len(theirs)) == kind
        }
        source = max(common, key=lambda other: common[other], default=None)
        if source is None or common[source] < LEAST_SHARED:
            return 0
        self._slots.cache.copy(source, row, common[source])
        return common[source]

    def _launch(self) -> bool:
        """Launch a step of all sequences that want one; whether there are any."""
        ended = [row for row, number in self._seated.items() if self._is_launched(number) and row not in self._idle]
        self._slots.idle(ended)
        self._idle += ended
        if not self._waiting:
            self._gather()
        running = {row: number for row, number in sorted(self._seated.items()) if row not in self._idle}
        if not running:
            return False
        numbers = list(running.values())
        left = max(self._sequences[number].room for number in numbers)
        count = min(_bucket(max(running) + 1), self._slots.cache.rows)
        if self._speculation is not None and (tokens := self._speculated(running, count)):
            self._verify(running, tokens, count, left)
            return True
        is_greedy = self._is_greedy
        result = self._slots.step(count, is_greedy, left)
        # A list of rows is a copy to the device that waits for it, so it is left out where it names all of them.
        rows = slice(0, count) if len(running) == count else list(running)
        result = result[rows]
        if not is_greedy:
            result = self._choose(result, numbers)
            self._slots.tokens[rows] = result
        self._launched(result, numbers)
        return True

    @property
    def _is_greedy(self) -> bool:
        """Whether the likeliest tokens are all that is wanted of logits."""
        return self._sampler.is_greedy and self._recorder is None

    def _speculated(self, running: Mapping[int, int], count: int) -> dict[int, list[int]]:
        """The last token of each sequence and guesses, by row; {} where a step should append one token to each."""
        assert self._speculation is not None
        sequences = {number: self._sequences[number] for number in running.values()}
        room = min(one.room for one in sequences.values())
        if self._model.device.type == "cpu":
            room = min(room, *(same_splits(len(one.prompt) + one.launched) for one in sequences.values()))
        tokens = self._speculation.tokens(sequences, count, room)
        return {row: tokens[number] for row, number in running.items()} if tokens else {}

    def _verify(self, running: Mapping[int, int], tokens: Mapping[int, list[int]], count: int, left: int) -> None:
        """A step that appends guesses as well, of which sequences keep those that they would have chosen."""
        assert self._speculation is not None
        held = {row: len(self._sequences[n].prompt) + self._sequences[n].launched - 1 for row, n in running.items()}
        width = len(next(iter(tokens.values())))
        appended = [tokens.get(row, [0] * width) for row in range(count)]
        result = self._slots.extend(appended, [held.get(row, -1) for row in range(count)], self._is_greedy, left)
        likeliest = result.tolist() if self._is_greedy else None
        chosen: dict[int, list[int]] = {row: [] for row in running}
        going = dict(running)  # those whose guesses were right so far
        for place in range(width):
            rows, numbers = list(going), list(going.values())
            if likeliest is not None:
                found = [likeliest[row][place] for row in rows]
            else:
                found = self._choose(result[rows, place], numbers).tolist()
            for row, number, token in zip(rows, numbers, found, strict=True):
                chosen[row].append(token)
                self._sequences[number].launched += 1
                if place + 1 == width or token != tokens[row][place + 1]:
                    del going[row]
            if not going:
                break
        last = torch.tensor([chosen[row][-1] for row in running], dtype=torch.int64, device="cpu")
        lengths = [held[row] + len(chosen[row]) for row in running]
        self._slots.seat(list(running), lengths, last.to(self._model.device, non_blocking=True))
        for row, number in running.items():
            self._speculation.learn(number, self._sequences[number], len(chosen[row]) - 1)
        self._take([(number, token) for row, number in running.items() for token in chosen[row]])

    def _is_launched(self, number: int) -> bool:
        return self._sequences[number].room == 0

    def _gather(self) -> None:
        """Where the last rows can go to free ones so that steps have fewer, move them there."""
        while self._seated and (last := max(self._seated)) >= _bucket(len(self._seated)):
            free = next(row for row in range(last) if row not in self._seated)
            number = self._seated[free] = self._seated.pop(last)
            sequence = self._sequences[number]
            if self._pool is not None:
                self._pool.move(last, free, len(sequence.prompt) + sequence.launched - 1)
            self._slots.move(last, free)
            self._idle = [free if row == last else row for row in self._idle]

    def _choose(self, logits: Tensor, numbers: list[int]) -> Tensor:
        sequences = [self._sequences[number] for number in numbers]
        tokens = self._sampler(logits, [sequence.launched for sequence in sequences], numbers)
        if self._recorder is not None:
            self._recorder.add(logits, tokens, sequences)
        return tokens

    def _launched(self, tokens: Tensor, numbers: list[int]) -> None:
        self._pending.append((HostCopy(tokens), numbers))
        for number in numbers:
            self._sequences[number].launched += 1

    def _read(self, ahead: int) -> None:
        """Wait for the tokens of all steps but the last ``ahead`` ones."""
        while len(self._pending) > ahead:
            tokens, numbers = self._pending.popleft()
            self._take(list(zip(numbers, tokens.tolist(), strict=True)))

    def _take(self, tokens: list[tuple[int, int]]) -> None:
        """Give tokens to the sequences of these numbers."""
        now = time.perf_counter()
        for number, token in tokens:
            sequence = self._sequences[number]
            if sequence.finish_reason is not None:
                continue  # it had ended when this step was launched
            if token == NOT_FINITE:
                raise FdppError("the model's logits are not finite: its weights are damaged or overflow in this dtype")
            sequence.push(token, self._eos_token_ids, now)
        ended = [row for row, number in self._seated.items() if self._sequences[number].finish_reason is not None]
        self._slots.idle([row for row in ended if row not in self._idle])
        for row in ended:
            number = self._seated.pop(row)
            self._sampler.forget(number)
            if self._speculation is not None:
                self._speculation.forget(number)
            if self._pool is not None:
                self._pool.leave(row)
        self._idle = [row for row in self._idle if row in self._seated]


def _bucket(rows: int) -> int:
    """The numbers of rows that steps have: powers of two, and one and a half times as many."""
    power = 1 << (rows - 1).bit_length()
    return 3 * power // 4 if power > 3 and rows <= 3 * power // 4 else power
