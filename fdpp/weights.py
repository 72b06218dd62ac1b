"""A weight of a model: where its rows stand in a checkpoint, and its values once they are loaded."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Some rows of a tensor whose ``total`` rows are ``groups`` equal groups: ``start`` to ``stop`` of each group."""

    total: int
    start: int
    stop: int
    groups: int = 1

    @property
    def count(self) -> int:
        return self.groups * (self.stop - self.start)

    def of(self, tensor: Tensor) -> Tensor:
        """The rows, one group after the other."""
        return tensor.unflatten(0, (self.groups, -1))[:, self.start : self.stop].flatten(0, 1)


@dataclass(frozen=True)
class Source:
    """A tensor of a checkpoint, or some rows of one.

    Attributes:
        name: in the checkpoint.
        shape: of what is taken.
        rows: what is taken; None for all of it.
    """

    name: str
    shape: tuple[int, ...]
    rows: Rows | None = None

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return self.shape if self.rows is None else (self.rows.total, *self.shape[1:])


@dataclass(frozen=True)
class Packing:
    """How a packed weight is read.

    Attributes:
        layout: what it holds (:mod:`fdpp.formats`).
        dtype: in which its readers take its values.
        interleaved: whether the rows of its sources alternate, as the weight wants it; those of several formats cannot.
        columns: int64 ``[K]``, the order in which it has its columns; None for their own. Tensors do not compare, and
            a source has one order.
    """

    layout: str
    dtype: torch.dtype
    interleaved: bool = False
    columns: Tensor | None = field(default=None, compare=False)


class Weight:
    """What a part of a model declares and a checkpoint fills.

    Attributes:
        sources: the tensors of the checkpoint that make it up, one after the other.
        interleaved: whether the rows of the sources alternate instead.
        dtype: of its values; None stands for the dtype of the model.
        offset: is added to what the checkpoint holds.
        is_matrix: whether its readers take it packed, too.
        tensor: its values; absent until they are loaded.
        packing: how ``tensor`` holds them; None for plain values.
    """

    __slots__ = ("sources", "interleaved", "dtype", "offset", "is_matrix", "packing", "tensor")

    tensor: Tensor

    def __init__(
        self,
        sources: tuple[Source, ...],
        interleaved: bool = False,
        dtype: torch.dtype | None = None,
        offset: float = 0.0,
        is_matrix: bool = False,
        packing: Packing | None = None,
    ) -> None:
        self.sources = sources
        self.interleaved = interleaved
        self.dtype = dtype
        self.offset = offset
        self.is_matrix = is_matrix
        self.packing = packing

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(source.shape[0] for source in self.sources), *self.sources[0].shape[1:])

    @property
    def value_dtype(self) -> torch.dtype:
        """The dtype in which its readers take its values, packed or not."""
        return self.tensor.dtype if self.packing is None else self.packing.dtype

    def rows(self) -> Iterator[tuple[Source, slice]]:
        """The rows of each source."""
        start = 0
        for number, source in enumerate(self.sources):
            stop = start + source.shape[0]
            yield source, slice(number, None, len(self.sources)) if self.interleaved else slice(start, stop)
            start = stop

    # The loader cuts all weights from one block of memory, which torch would write whole for each of them.
    def __reduce__(self) -> tuple[Any, ...]:
        tensor = self.tensor.clone() if hasattr(self, "tensor") else None
        declared = self.sources, self.interleaved, self.dtype, self.offset, self.is_matrix, self.packing
        return _restored, (declared, tensor)

    def __deepcopy__(self, memo: dict[int, Any]) -> Weight:
        return copy.copy(self)


def _restored(declared: tuple[Any, ...], tensor: Tensor | None) -> Weight:
    weight = Weight(*declared)
    if tensor is not None:
        weight.tensor = tensor
    return weight
