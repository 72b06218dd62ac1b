"""The modules of a directory whose matrices have few bits: each shows a ``weight`` in place of its parts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fdpp.checkpoints.integer_methods import IntegerMethod
from fdpp.checkpoints.integer_weights import IntegerMatrix, column_order
from fdpp.checkpoints.quantization_method import QuantizationMethod, QuantizedMatrix
from fdpp.checkpoints.weight_files import WeightFile
from fdpp.errors import CheckpointError
from fdpp.formats import PACKED, StoredRows

_Tensors = Mapping[str, tuple[WeightFile, str]]


class QuantizedModules:
    """By the name of the weight, which is that of the module with ``.weight``.

    Attributes:
        plain: the tensors of a directory that are no part of such a module.
        shapes: (rows, columns) of each weight.

    Raises:
        CheckpointError: parts of a module are missing, or do not belong together.
    """

    def __init__(self, method: QuantizationMethod | None, tensors: _Tensors) -> None:
        self._method = method
        self._parts: dict[str, dict[str, tuple[WeightFile, str]]] = {}
        self.plain = dict(tensors)
        self.shapes: dict[str, tuple[int, int]] = {}
        if method is not None:
            self._take_parts(method, tensors)
            for weight, parts in self._parts.items():
                if weight in self.plain:
                    raise CheckpointError(f"tensor {weight} occurs twice, once as {_module(weight)}.{min(parts)}")
                stored = {part: file.stored(name) for part, (file, name) in parts.items()}
                self.shapes[weight] = method.checked_size(_module(weight), stored)

    def __contains__(self, weight: str) -> bool:
        return weight in self._parts

    def format(self, weight: str) -> str | None:
        """The format in which it is packed; None where none holds it as it is."""
        if not isinstance(method := self._of(weight), IntegerMethod):
            return None
        found = method.checked_format(_module(weight), self.shapes[weight][1])
        # Groups of unequal sizes fill no whole number of blocks.
        return found if found and column_order(self._groups(weight, method), PACKED[found].block)[0] else None

    def order(self, weight: str) -> Tensor | None:
        """The order in which the columns of what has a format are packed; None for their own."""
        method, format = self._packed(weight)
        return column_order(self._groups(weight, method), PACKED[format].block)[1]

    def read_into(self, weight: str, out: Tensor) -> None:
        """Write its values, rounded to float32 and to the dtype of ``out``."""
        self._matrix(weight).read_into(out)

    def stored_rows(self, weight: str) -> StoredRows:
        """The rows of what has a format in it, with the columns in their order."""
        matrix, order = self._matrix(weight), self.order(weight)
        assert isinstance(matrix, IntegerMatrix), weight
        return matrix.stored_rows(self._packed(weight)[1], order)

    def is_zero_bias(self, name: str) -> bool:
        """Whether it is a bias of zeros: AutoGPTQ gave one to every module, also in models that have none."""
        if not name.endswith(".bias") or f"{name.removesuffix('.bias')}.weight" not in self:
            return False
        file, stored = self.plain[name]
        return not bool(file.tensor(stored).any())

    def _take_parts(self, method: QuantizationMethod, tensors: _Tensors) -> None:
        """A module is one of the method's where it has any other part than a plain one has."""
        kinds = {*method.needed, *method.ignored} | {method.order} - {None}
        split = {name: name.rpartition(".") for name in tensors}
        modules = {module for module, _, part in split.values() if module and part in kinds - {"weight"}}
        for name, (module, _, part) in split.items():
            if module in modules and part in kinds:
                self._parts.setdefault(f"{module}.weight", {})[part] = tensors[name]
                del self.plain[name]

    def _of(self, weight: str) -> QuantizationMethod:
        if self._method is None or weight not in self._parts:
            raise CheckpointError(f"tensor {weight}: expected weights of few bits")
        return self._method

    def _packed(self, weight: str) -> tuple[IntegerMethod, str]:
        method = self._of(weight)
        if isinstance(method, IntegerMethod):
            if (format := method.checked_format(_module(weight), self.shapes[weight][1])) is not None:
                return method, format
        raise CheckpointError(f"tensor {weight}: expected weights that a format holds")

    def _groups(self, weight: str, method: IntegerMethod) -> Tensor:
        file, name = self._parts[weight].get(method.order or "", (None, ""))
        return method.groups(_module(weight), self.shapes[weight][1], None if file is None else file.tensor(name))

    def _matrix(self, weight: str) -> QuantizedMatrix:
        parts = {part: file.tensor(name) for part, (file, name) in self._parts[weight].items()}
        matrix = self._of(weight).matrix(_module(weight), parts)
        # Blocks are packed from addresses: no file that changes under a load may make fewer of them.
        is_whole = not isinstance(matrix, IntegerMatrix) or matrix.codes.dtype == torch.uint8
        if matrix.shape != self.shapes[weight] or not is_whole:
            raise CheckpointError(f"tensor {weight}: expected {self.shapes[weight]}, got {matrix.shape}")
        return matrix


def _module(weight: str) -> str:
    return weight.removesuffix(".weight")
