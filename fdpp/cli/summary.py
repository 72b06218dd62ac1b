"""The block of figures that ends a generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fdpp import LLM
    from fdpp.engine.sequence import Timings


def render_summary(
    timings: Sequence[Timings],
    bytes_per_step: int,
    bandwidth: float,
    sampling: object = None,
    softmax: str | None = None,
    guesses: str | None = None,
) -> str:
    """The figures of a batch that was decoded together, one line per topic.

    Args:
        timings: the engine's ``Timings`` of each sequence.
        bytes_per_step: bytes of weights and KV cache that one decode step of the batch reads.
        bandwidth: bytes per second from memory (:func:`fdpp.timing.memory_bandwidth`), which bounds decoding.
        sampling: how the tokens were chosen, where ``generation_config.json`` had a say in it.
        softmax: of :func:`describe_softmax`.
        guesses: of :func:`describe_guesses`.
    """
    prompt_tokens = sum(t.prompt_tokens_computed for t in timings)
    rows = [("prompt", rate(prompt_tokens, sum(t.prompt_seconds for t in timings)))]
    tokens = sum(t.decode_tokens for t in timings)
    seconds = max(t.decode_seconds for t in timings)
    if tokens and seconds:
        steps = max(t.decode_tokens - t.accepted_tokens for t in timings)
        read = bytes_per_step * steps / seconds
        rows += [
            ("decode", f"{rate(tokens, seconds)}, {1e3 * seconds / tokens:.2f} ms/token"),
            (
                "memory",
                f"{bytes_per_step * steps / tokens / 1e6:.1f} MB/token, {read / 1e9:.1f} GB/s: "
                f"{read / bandwidth:.0%} of the bandwidth bound ({bandwidth / 1e9:.1f} GB/s)",
            ),
        ]
    if guesses is not None:
        rows.append(("guesses", guesses))
    if sampling is not None:
        rows.append(("sampling", f"{sampling} (defaults of generation_config.json; --no-generation-config)"))
    if softmax is not None:
        rows.append(("softmax", softmax))
    return "\n".join(f"{name:9s}{text}" for name, text in rows)


def describe_guesses(timings: Timings) -> str:
    """What became of the guesses for a sequence, and how many tokens a step gave it."""
    steps = timings.decode_tokens - timings.accepted_tokens
    each = f", {timings.decode_tokens / steps:.2f} tokens/step" if steps else ""
    return f"{timings.accepted_tokens} of {timings.guessed_tokens} tokens accepted{each}"


def describe_softmax(llm: LLM, timings: Sequence[Timings]) -> str:
    """How often references moved in a batch, of all softmaxes of its steps, and where they began."""
    moved, steps = timings[0].rereferences, sum(t.decode_tokens for t in timings)
    softmaxes = steps * sum(attention.num_heads for attention in llm.model.attentions)
    share = f" ({moved / softmaxes:.2%} of rows and heads)" if softmaxes else ""
    phi = "0; see `fdpp calibrate`" if llm.calibration is None else llm.calibration.path or llm.calibration.text
    return f"guard moved {moved} times{share}; phi: {phi}"


def rate(tokens: int, seconds: float) -> str:
    """``12 tokens in 0.50 s, 24.0 tokens/s``."""
    speed = f", {tokens / seconds:.1f} tokens/s" if seconds > 0 else ""
    return f"{tokens} tokens in {seconds:.2f} s{speed}"
