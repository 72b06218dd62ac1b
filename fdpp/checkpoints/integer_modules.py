"""The modules of a directory whose matrices are integers: each shows a ``weight`` in place of its parts."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from fdpp.checkpoints.integer_methods import IntegerMethod
from fdpp.checkpoints.integer_weights import IntegerMatrix, column_order
from fdpp.checkpoints.weight_files import WeightFile
from fdpp.errors import CheckpointError
from fdpp.formats import PACKED, StoredRows

_Tensors = Mapping[str, tuple[WeightFile, str]]


class IntegerModules:
    """By the name of the weight, which is that of the module with ``.weight``.

    Attributes:
        plain: the tensors of a directory that are no part of a module's integers.
        shapes: (rows, columns) of each weight.

    Raises:
        CheckpointError: parts of a module are missing, or do not belong together.
    """

    def __init__(self, method: IntegerMethod | None, tensors: _Tensors) -> None:
        self._method = method
        self._parts: dict[str, dict[str, tuple[WeightFile, str]]] = {}
        self.plain = dict(tensors)
        self.shapes: dict[str, tuple[int, int]] = {}
        if method is not None:
            self._take_parts({*method.needed, method.order}, tensors)
            for weight, parts in self._parts.items():
                if weight in tensors:
                    raise CheckpointError(f"tensor {weight} occurs twice, once as {_module(weight)}.{min(parts)}")
                stored = {part: file.stored(name) for part, (file, name) in parts.items()}
                self.shapes[weight] = method.checked_size(_module(weight), stored)

    def __contains__(self, weight: str) -> bool:
        return weight in self._parts

    def format(self, weight: str) -> str | None:
        """The format in which it is packed; None where groups of unequal sizes fill no whole number of blocks."""
        method, columns = self._of(weight), self.shapes[weight][1]
        found = method.checked_format(_module(weight), columns)
        return found if column_order(self._groups(weight), PACKED[found].block)[0] else None

    def order(self, weight: str) -> Tensor | None:
        """The order in which its columns are packed; None for their own."""
        found = self._of(weight).checked_format(_module(weight), self.shapes[weight][1])
        return column_order(self._groups(weight), PACKED[found].block)[1]

    def read_into(self, weight: str, out: Tensor) -> None:
        """Write its values, rounded to float32 and to the dtype of ``out``."""
        self._matrix(weight).read_into(out)

    def stored_rows(self, weight: str) -> StoredRows:
        """Its rows in its format, with the columns in their order."""
        format = self._of(weight).checked_format(_module(weight), self.shapes[weight][1])
        return self._matrix(weight).stored_rows(format, self.order(weight))

    def is_zero_bias(self, name: str) -> bool:
        """Whether it is a bias of zeros: AutoGPTQ gave one to every module, also in models that have none."""
        if not name.endswith(".bias") or f"{name.removesuffix('.bias')}.weight" not in self:
            return False
        file, stored = self.plain[name]
        return not bool(file.tensor(stored).any())

    def _take_parts(self, kinds: Collection[str | None], tensors: _Tensors) -> None:
        for name, found in tensors.items():
            module, _, part = name.rpartition(".")
            if module and part in kinds:
                self._parts.setdefault(f"{module}.weight", {})[part] = found
                del self.plain[name]

    def _of(self, weight: str) -> IntegerMethod:
        if self._method is None or weight not in self._parts:
            raise CheckpointError(f"tensor {weight}: expected integers")
        return self._method

    def _groups(self, weight: str) -> Tensor:
        method, parts = self._of(weight), self._parts[weight]
        file, name = parts.get(method.order or "", (None, ""))
        return method.groups(_module(weight), self.shapes[weight][1], None if file is None else file.tensor(name))

    def _matrix(self, weight: str) -> IntegerMatrix:
        parts = {part: file.tensor(name) for part, (file, name) in self._parts[weight].items()}
        matrix = self._of(weight).matrix(_module(weight), parts)
        # Blocks are packed from addresses: no file that changes under a load may make fewer of them.
        if tuple(matrix.codes.shape) != self.shapes[weight] or matrix.codes.dtype != torch.uint8:
            raise CheckpointError(f"tensor {weight}: expected {self.shapes[weight]}, got {tuple(matrix.codes.shape)}")
        return matrix


def _module(weight: str) -> str:
    return weight.removesuffix(".weight")
