"""The files in which a Hugging Face directory keeps its weights: safetensors, or what ``torch.save`` writes."""

from __future__ import annotations

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fdpp.errors import CheckpointError, one_line

_FLOATS = {"F64", "F32", "F16", "BF16"}
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int32: "I32", torch.int64: "I64", torch.int8: "I8", torch.uint8: "U8", torch.float8_e4m3fn: "F8_E4M3",
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """What a file says of a tensor.

    Attributes:
        dtype: as safetensors spells it; whatever else it is, where it is no dense tensor.
        shape: of it.
    """

    dtype: str
    shape: tuple[int, ...]


class WeightFile(ABC):
    """Tensors by name."""

    @abstractmethod
    def names(self) -> Iterable[str]:
        """All of them."""

    @abstractmethod
    def stored(self, name: str) -> StoredTensor:
        """Dtype and shape of one."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one, which is of a floating dtype.

        Raises:
            CheckpointError: it is not.
        """
        stored = self.stored(name)
        if stored.dtype not in _FLOATS:
            raise CheckpointError(f"tensor {name}: expected a dtype of {sorted(_FLOATS)}, got {stored.dtype}")
        return stored.shape

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """Its values; may raise anything."""


class SafetensorsFile(WeightFile):
    """A ``.safetensors`` file, mapped."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            # Checks the header against the length of the file: every tensor lies inside it.
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: {one_line(error)}") from error

    def names(self) -> Iterable[str]:
        return list(self._file.keys())

    def stored(self, name: str) -> StoredTensor:
        view = self._file.get_slice(name)
        return StoredTensor(view.get_dtype(), tuple(torch.Size(view.get_shape())))

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


class PickledFile(WeightFile):
    """A ``.bin`` file, mapped if it can be, and read by torch's restricted unpickler, which runs no code of it."""

    def __init__(self, path: Path) -> None:
        try:
            # Files from before torch 1.6 are no archives, and cannot be mapped.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except Exception as error:  # a damaged or hostile pickle can make torch raise anything
            raise CheckpointError(f"{path}: {one_line(error)}") from error
        if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
            raise CheckpointError(f"{path}: expected tensors by name, got {type(content).__name__}")
        self._content = content

    def names(self) -> Iterable[str]:
        return list(self._content)

    def stored(self, name: str) -> StoredTensor:
        value = self._content[name]
        if not isinstance(value, Tensor):
            return StoredTensor(type(value).__name__, ())
        if value.layout != torch.strided:
            return StoredTensor(f"{value.layout} {value.dtype}", ())
        return StoredTensor(_DTYPES.get(value.dtype, str(value.dtype)), tuple(value.shape))

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._content[name]
        return tensor.detach()


_KINDS = {".safetensors": SafetensorsFile, ".bin": PickledFile}
ENDINGS = tuple(_KINDS)


def open_weight_file(path: Path) -> WeightFile:
    """A file with one of :data:`ENDINGS`.

    Raises:
        CheckpointError: it is not there, or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    return _KINDS[path.suffix](path)
