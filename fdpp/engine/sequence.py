"""A sequence in the making, and where its time went."""

from __future__ import annotations

from dataclasses import dataclass, field

from fdpp.engine.sampling_options import SamplingOptions
from fdpp.engine.text_stream import TextStream


@dataclass
class Timings:
    """Where the time of a sequence went, in seconds on the wall clock.

    Attributes:
        prompt_tokens: tokens of the prompt.
        prompt_tokens_computed: those of them that no other prompt of the request, and no earlier request, had computed.
        prompt_seconds: its prefill, which also yields the first new token: its share of the passes that it was in.
        decode_tokens: new tokens after the first.
        guessed_tokens, accepted_tokens: those that were guessed ahead, and those of them that the model would have
            chosen, too: each of these is a step less.
        decode_seconds: from the first new token to the last; steps are shared with the rest of the batch, and prompts
            that were computed in between count.
        rereferences: how often a softmax reference had to move during the steps, over the whole request. On a GPU this
            counts one more step of a sequence that ends before its last possible token.
    """

    prompt_tokens: int = 0
    prompt_tokens_computed: int = 0
    prompt_seconds: float = 0.0
    decode_tokens: int = 0
    guessed_tokens: int = 0
    accepted_tokens: int = 0
    decode_seconds: float = 0.0
    rereferences: int = 0

    @property
    def decode_tokens_per_second(self) -> float:
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0


@dataclass
class Sequence:
    """One sequence in the making.

    Attributes:
        prompt: the token ids of the prompt.
        max_new_tokens: the most tokens it may get, at least 1.
        stream: takes its text.
        sampling: how its tokens are chosen.
        index: its number among the sequences that share its seed.
        launched: the tokens that steps were launched for; those of the last ones may not be there yet.
        token_ids: the new tokens, the one that ended it included.
        logprobs: see :class:`LogprobRecorder`; None unless asked for.
        finish_reason: ``"stop"`` (end-of-text token or stop string), ``"length"``, or None as long as it runs.
        timings: filled in as it goes.
    """

    prompt: list[int]
    max_new_tokens: int
    stream: TextStream
    sampling: SamplingOptions = SamplingOptions()
    index: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] | None = None
    finish_reason: str | None = None
    launched: int = 0
    timings: Timings = field(default_factory=Timings)
    _start: float = 0.0

    @property
    def room(self) -> int:
        """How many more tokens steps may be launched for."""
        return self.max_new_tokens - self.launched

    def push(self, token: int, eos_token_ids: frozenset[int], now: float) -> None:
        """Take the next token at that time, of ``time.perf_counter``, and decide whether the sequence has ended."""
        if not self.token_ids:
            self._start = now
        self.token_ids.append(token)
        self.timings.decode_tokens = len(self.token_ids) - 1
        self.timings.decode_seconds = now - self._start
        if token in eos_token_ids:
            self.finish_reason = "stop"
            self.stream.finish()
        elif self.stream.push(token):
            self.finish_reason = "stop"
        elif len(self.token_ids) == self.max_new_tokens:
            self.finish_reason = "stop" if self.stream.finish() else "length"
