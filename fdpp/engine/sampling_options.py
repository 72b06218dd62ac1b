"""How to choose tokens, as plain numbers, and what a model's ``generation_config.json`` says about it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from fdpp.engine.values import integer, plain
from fdpp.errors import CheckpointError, RequestError, show

# Name of a number: what it must be, in words and as a test. Logits of any finite size survive these penalties.
_NUMBERS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("a number >= 0", lambda value: value >= 0),
    "top_p": ("a number in (0, 1]", lambda value: 0 < value <= 1),
    "min_p": ("a number in 0..1", lambda value: 0 <= value <= 1),
    "repetition_penalty": ("a number in 0.01..100", lambda value: 0.01 <= value <= 100),
}


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose a token. The options apply in the order of transformers, which is the order below.

    Attributes:
        repetition_penalty: divides the positive logits, and multiplies the negative ones, of the tokens that the prompt
            or the answer holds already; 1 leaves them alone. Source: CTRL, arXiv 1909.05858, section 4.1.
        temperature: divides the logits; 0 takes the likeliest token, and what follows does not matter.
        top_k: only the ``top_k`` likeliest tokens, and those as likely as the last of them; 0 means all.
        top_p: then only the likeliest tokens that together reach this share of what is left (nucleus sampling).
        min_p: then only the tokens that are at least this many times as likely as the likeliest one.
        seed: makes the draw repeatable; None takes one from torch's global generator.

    Numbers of numpy and torch become Python's own.

    Raises:
        RequestError: an option out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, (wanted, is_right) in _NUMBERS.items():
            given = getattr(self, name)
            number = _finite(given)
            if number is None or not is_right(number):
                raise RequestError(f"{name}: expected {wanted}, got {show(given)}")
            object.__setattr__(self, name, number)
        object.__setattr__(self, "top_k", integer("top_k", self.top_k, 0))
        if self.seed is not None:
            object.__setattr__(self, "seed", integer("seed", self.seed, 0, (1 << 63) - 1))

    def __str__(self) -> str:
        """What is in force, as ``temperature 0.6, top_k 20`` or ``greedy``."""
        penalty = () if self.repetition_penalty == 1 else ("repetition_penalty",)
        if self.temperature == 0:
            return ", ".join(["greedy", *self._texts(penalty)])
        defaults = {field.name: field.default for field in fields(self)}
        names = [name for name in ("top_k", "top_p", "min_p") if getattr(self, name) != defaults[name]]
        return ", ".join(self._texts(("temperature", *names, *penalty)))

    def _texts(self, names: tuple[str, ...]) -> list[str]:
        return [f"{name} {getattr(self, name):g}" for name in names]


def _finite(value: object) -> float | None:
    """The value as a finite float, or None where it is none."""
    number = plain(value)
    if type(number) not in (int, float):
        return None
    try:
        number = float(number)
    except OverflowError:  # an integer beyond the range of floats
        return None
    return number if math.isfinite(number) else None


_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
# Settings of transformers that change the text and that fdpp does not have, and the values that change nothing.
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "num_beams": (1,),
    "no_repeat_ngram_size": (0,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "bad_words_ids": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "stop_strings": ([],),
    "watermarking_config": (),
}


def sampling_defaults(config: Mapping[str, Any]) -> SamplingOptions:
    """How the makers of a model sample it: greedily unless ``do_sample`` is true.

    Args:
        config: the content of ``generation_config.json``. What it does not name stays off: unlike transformers, which
            takes the 50 likeliest tokens where no ``top_k`` is named. Settings that fdpp does not have give a warning.

    Raises:
        CheckpointError: a value out of its range.
    """
    given = {name: config[name] for name in _DEFAULTS if config.get(name) is not None}
    samples = config.get("do_sample")
    try:
        if samples is not None and type(samples) is not bool:
            raise RequestError(f"do_sample: expected true or false, got {show(samples)}")
        given["temperature"] = given.get("temperature", 1.0) if samples else 0.0
        options = SamplingOptions(**given)
    except RequestError as error:
        raise CheckpointError(f"generation_config.json: {error}; generation_config=False leaves it out") from error
    ignored = [name for name, neutral in _UNSUPPORTED.items() if config.get(name) not in (None, *neutral)]
    if ignored:
        warnings.warn(f"generation_config.json: fdpp has no {', '.join(ignored)} and goes on without", stacklevel=2)
    return options
