"""How a decode step runs, and where its time goes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fdpp.engine import kv_cache
from fdpp.engine.graph import GraphCapture
from fdpp.engine.model import Model
from fdpp.engine.recording import RecordedStep
from fdpp.engine.slots import Slots
from fdpp.errors import one_line


@torch.inference_mode()
def explain_step(model: Model, batch: int, page_size: int | None = None) -> str:
    """What of a greedy step is replayed, and what is not: a line of text.

    Args:
        model: with its weights.
        batch: sequences.
        page_size: tokens per page of the key/value cache; None for a contiguous one.
    """
    step, what = _step(model, batch, 1, page_size), f"a greedy step of {len(model.blocks)} layers, batch {batch}"
    if model.device.type == "cpu":
        return f"{what}: {RecordedStep(step)}"
    step()  # eager, as before any capture
    try:
        GraphCapture(model.device)(step)
    except RuntimeError as error:
        return f"{what}: runs eagerly, as it cannot be captured: {one_line(error)}"
    return f"{what}: one graph"


@torch.inference_mode()
def profile_step(model: Model, batch: int, context: int, page_size: int | None = None, rounds: int = 16) -> str:
    """Where the time of a greedy step goes on a CPU: a line of text, of the fastest of some rounds.

    Args:
        model, batch, page_size: as in :func:`explain_step`.
        context: tokens that each sequence has. What they are does not matter to the time.
        rounds: their number.
    """
    recorded = RecordedStep(_step(model, batch, context + rounds, page_size, context))
    parts = min((recorded.profile() for _ in range(rounds)), key=lambda parts: sum(parts.values()))
    total = sum(parts.values())
    shares = ", ".join(f"{name} {1e3 * part:.2f} ms ({part / total:.0%})" for name, part in parts.items())
    return f"{1e3 * total:.2f} ms: {shares}"


def _step(model: Model, batch: int, capacity: int, page_size: int | None, context: int = 0) -> Callable[[], Tensor]:
    capacity = min(capacity, model.max_positions)
    cache = kv_cache.allocate(model.attentions, [capacity] * batch, model.dtype, model.device, page_size)
    for cached in (*cache.keys, *cache.values):
        cached.zero_()
    model.reserve(capacity)
    slots = Slots(model, cache, None)
    if context:
        tokens = torch.zeros(batch, dtype=torch.int64, device=model.device)
        slots.seat(list(range(batch)), [min(context, capacity - 1)] * batch, tokens)
    return lambda: slots.step(batch, is_greedy=True, steps_left=0)
