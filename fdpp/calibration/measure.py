"""Measuring a calibration: a text goes through the model, and every head gets its phi."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources

import numpy as np
import torch
from torch import Tensor

from fdpp.calibration import LEVELS, Calibration, fingerprint
from fdpp.calibration.fit import BOUNDS, fit_phi, maxima, moving_share
from fdpp.engine.model import Model
from fdpp.engine.observe import observe_logits


def own_text() -> str:
    """The text that ships: Carroll, the Declaration of Independence, Darwin, Shakespeare, Euclid, Austen; 1,800 tokens.

    All of it is in the public domain.
    """
    return (resources.files("fdpp.calibration") / "text.txt").read_text("utf-8")


def calibrate(
    model: Model, ids: Sequence[int], name: str, text: str, progress: Callable[[int, int], None] | None = None
) -> Calibration:
    """Observe a text and fit phi to it, for each kind of guard.

    Args:
        model: with its weights.
        ids: the tokens of the text.
        name: of the model, for people.
        text: where the text is from, for people.
        progress: called with the number of layers seen and their number in all.

    Raises:
        RequestError: the key/value cache of the text would not fit into memory.
    """
    heads = [attention.num_heads for attention in model.attentions]
    quantiles: list[list[list[float]]] = [[] for _ in heads]
    phi: dict[str, list[list[float]]] = {guard: [[] for _ in heads] for guard in BOUNDS}
    shares: dict[str, list[tuple[float, float]]] = {guard: [] for guard in BOUNDS}

    def see(layer: int, head: int, logits: Tensor) -> None:
        quantiles[layer].append(_quantiles(logits))
        seen = maxima(logits)
        for guard, bounds in BOUNDS.items():
            fitted = fit_phi(seen, bounds)
            phi[guard][layer].append(fitted)
            tried = torch.tensor([0.0, fitted], dtype=torch.float32, device="cpu")
            before, after = moving_share(seen, tried, bounds).tolist()
            shares[guard].append((before, after))
        if progress is not None and head == heads[layer] - 1:
            progress(layer + 1, len(heads))

    observe_logits(model, ids, see)
    moves = {guard: tuple(np.mean(shares[guard], axis=0).tolist()) for guard in BOUNDS}
    return Calibration(name, fingerprint(model), text, len(ids), phi, quantiles, moves)


def _quantiles(logits: Tensor) -> list[float]:
    """At :data:`LEVELS`, of all logits that are not masked."""
    values = logits[logits > -torch.inf].cpu().numpy()
    places = [round(level * (len(values) - 1)) for level in LEVELS]
    return np.partition(values, places)[places].tolist()
