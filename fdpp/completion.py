"""What comes back from a request."""

from __future__ import annotations

from dataclasses import dataclass

from fdpp.engine.sampling_options import SamplingOptions
from fdpp.engine.sequence import Sequence, Timings


@dataclass(frozen=True)
class Completion:
    """What a model made of one prompt.

    Attributes:
        text: the new text, up to the stop string or the end-of-text token, neither of them included.
        token_ids: the new tokens; all of them, the end-of-text token included.
        prompt_token_ids: the tokens of the prompt.
        finish_reason: ``"stop"`` or ``"length"``.
        timings: where the time went.
        sampling: how the tokens were chosen; a seed that was drawn is in there.
        logprobs: per new token, the log-probability of the likeliest tokens and of the chosen one by token id: natural
            logarithms of the model's softmax, before any sampling option. None unless asked for.
    """

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: str
    timings: Timings
    sampling: SamplingOptions
    logprobs: list[dict[int, float]] | None

    @classmethod
    def of(cls, sequence: Sequence) -> Completion:
        """That of a sequence which has ended."""
        return cls(
            sequence.stream.text,
            sequence.token_ids,
            list(sequence.prompt),
            sequence.finish_reason or "length",
            sequence.timings,
            sequence.sampling,
            sequence.logprobs,
        )
