"""What ``fdpp.LLM(speculate=..., draft=...)`` stands for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fdpp.engine.guessers import Draft, Ngrams
from fdpp.engine.speculation import Guesser
from fdpp.errors import RequestError, show

if TYPE_CHECKING:
    from fdpp.engine.slots import Capture
    from fdpp.llm import LLM


def check_speculation(speculate: str | None, draft: str | Path | None) -> None:
    """
    Raises:
        RequestError: it names no way to guess, or two.
    """
    if speculate not in (None, "ngram"):
        raise RequestError(f'speculate: expected "ngram" or None, got {show(speculate)}')
    if speculate is not None and draft is not None:
        raise RequestError("draft: expected no speculate beside it: a text is guessed in one way")


def check_draft(llm: LLM, draft: LLM) -> None:
    """
    Raises:
        RequestError: a text has other tokens for the draft model, so that its guesses would mean something else.
    """
    from fdpp.calibration.measure import own_text

    text = own_text()
    ours, theirs = (None if one.tokenizer is None else one.tokenizer.encode(text) for one in (llm, draft))
    if ours != theirs or (ours is None and llm.model.vocab_size != draft.model.vocab_size):
        raise RequestError("draft: expected a model with the tokenizer of the large one, got one with another")


def make_guesser(llm: LLM, speculate: str | None, draft: LLM | None, capture: Capture | None) -> Guesser | None:
    """One for each runner: it keeps what belongs to the requests of that."""
    if draft is not None:
        return Draft(draft.model, llm.model.vocab_size, capture)
    return None if speculate is None else Ngrams()
