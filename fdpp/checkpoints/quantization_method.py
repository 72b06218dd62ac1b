"""What all methods share by which a Hugging Face directory keeps matrices of few bits.

A converted module has several tensors, its *parts*, for its ``weight``: codes, scales and what else a method needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Protocol

from torch import Tensor

from fdpp.checkpoints.weight_files import StoredTensor
from fdpp.errors import CheckpointError

Expected = Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]]
"""The dtypes that each part may have, and its shape; a number may have the shape () as well as (1,)."""


class QuantizedMatrix(Protocol):
    """The values of a module."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""

    def read_into(self, out: Tensor) -> None:
        """Write the values into ``out``, rounded to float32 and to its dtype."""


class QuantizationMethod(ABC):
    """The parts of converted modules, and what they mean.

    Attributes:
        codes: the part that holds them.
        order: the part that may name the group of each column.
        ignored: parts that say nothing of the weight: scales of activations, which stay in 16 bits.
        only_values: what such weights are called, where none of fdpp's formats holds them as they are; else None.
        needed: the parts that a converted module has.
    """

    codes: ClassVar[str]
    order: ClassVar[str | None] = None
    ignored: ClassVar[tuple[str, ...]] = ()
    only_values: ClassVar[str | None] = None

    def __init__(self, *others: str) -> None:
        self.needed = (self.codes, *others)

    @abstractmethod
    def size(self, codes: tuple[int, int]) -> tuple[int, int]:
        """(N, K) of a matrix whose codes have this shape."""

    @abstractmethod
    def expected_of(self, module: str, rows: int, columns: int) -> Expected:
        """What the parts of a matrix of that size are."""

    @abstractmethod
    def matrix(self, module: str, parts: Mapping[str, Tensor]) -> QuantizedMatrix:
        """What a module's parts hold."""

    def checked_size(self, module: str, parts: Mapping[str, StoredTensor]) -> tuple[int, int]:
        """(N, K) of a module whose parts have the dtypes and shapes that belong together."""
        for part in self.needed:
            if part not in parts:
                raise CheckpointError(f"tensor {module}.{part} is missing")
        codes = parts[self.codes].shape
        if len(codes) != 2 or 0 in codes:
            raise CheckpointError(f"tensor {module}.{self.codes}: expected a matrix, got shape {codes!r:.80}")
        rows, columns = self.size((codes[0], codes[1]))
        for part, (dtypes, shape) in self.expected_of(module, rows, columns).items():
            if part in parts and (parts[part].dtype not in dtypes or (parts[part].shape or (1,)) != shape):
                wanted, came = f"{' or '.join(dtypes)} {shape}", f"{parts[part].dtype} {parts[part].shape!r:.80}"
                raise CheckpointError(f"tensor {module}.{part}: expected {wanted}, got {came}")
        return rows, columns
