"""From the logits of a head to its phi: pure functions.

A softmax starts at the reference phi and moves it when the guard (csrc/common/softmax_state.h) says so: where a logit
lies more than ``high`` above it, or the first keys of a split more than ``-low`` below. So phi should lie high enough
for the largest logit of a row, and low enough for the largest of any few keys at which a split may begin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fdpp._host import GUARDS

_LN2 = 0.6931471805599453
#: Of each guard, how far below and above its reference logits may lie, in natural units.
BOUNDS = {name: (low * _LN2, high * _LN2) for name, (low, high) in GUARDS.items()}
_TILE = 16  # keys that the guard looks at together
_STEP = 64  # keys from one place at which a split may begin to the next one that is looked at


@dataclass(frozen=True)
class Maxima:
    """What decides whether a head's references move.

    Attributes:
        rows: float32 ``[S]``, the largest logit of each query.
        tiles: float32 ``[T]``, the largest logit of the first keys of a split, for many places where it may begin.
    """

    rows: Tensor
    tiles: Tensor


def maxima(logits: Tensor) -> Maxima:
    """Of logits ``[S, keys]``, -inf where masked; every query sees a key."""
    queries, keys = logits.shape
    padded = torch.nn.functional.pad(logits, (0, -keys % _STEP), value=-torch.inf)
    tiles = padded.view(queries, -1, _STEP)[:, :, :_TILE].amax(-1)
    return Maxima(logits.amax(-1).cpu(), tiles[tiles > -torch.inf].cpu())


def moving_share(seen: Maxima, phi: Tensor, bounds: tuple[float, float]) -> Tensor:
    """How often a reference moves that begins at each ``phi`` ``[N]``: of the rows that have a logit too far above,
    and of the splits that begin too far below, the shares, added up.
    """
    low, high = bounds
    above = 1 - _count(seen.rows - high, phi, right=True) / len(seen.rows)
    below = _count(seen.tiles - low, phi, right=False) / len(seen.tiles)
    return above + below


def fit_phi(seen: Maxima, bounds: tuple[float, float]) -> float:
    """The phi with which the fewest references move; of an interval of such, the middle, which is the safest."""
    low, high = bounds
    turns = torch.cat([seen.rows - high, seen.tiles - low]).unique()  # the share changes nowhere else
    candidates = torch.cat([turns, (turns[1:] + turns[:-1]) / 2])
    room = torch.cat([torch.zeros_like(turns), turns.diff()])
    share = moving_share(seen, candidates, bounds)
    return float(candidates[torch.where(share == share.min(), room, -1.0).argmax()])


def _count(values: Tensor, at: Tensor, right: bool) -> Tensor:
    """How many values lie below each number, or at it with ``right``."""
    return torch.searchsorted(values.sort().values, at, right=right).double()
