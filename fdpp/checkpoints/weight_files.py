"""The files in which a Hugging Face directory keeps its weights: safetensors, or what ``torch.save`` writes."""

from __future__ import annotations

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from fdpp.errors import CheckpointError, one_line

_FLOATS = {"F64", "F32", "F16", "BF16"}
_TORCH_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class WeightFile(ABC):
    """Tensors by name."""

    @abstractmethod
    def names(self) -> Iterable[str]:
        """All of them."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one, which is of a floating dtype.

        Raises:
            CheckpointError: it is not.
        """

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

    def shape(self, name: str) -> tuple[int, ...]:
        view = self._file.get_slice(name)
        if (dtype := view.get_dtype()) not in _FLOATS:
            raise CheckpointError(f"tensor {name}: expected a dtype of {sorted(_FLOATS)}, got {dtype}")
        return tuple(torch.Size(view.get_shape()))

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

    def shape(self, name: str) -> tuple[int, ...]:
        value = self._content[name]
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.dtype not in _TORCH_FLOATS:
            came = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
            raise CheckpointError(f"tensor {name}: expected a dtype of {sorted(_FLOATS)}, got {came}")
        return tuple(value.shape)

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
