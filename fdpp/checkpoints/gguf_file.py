"""The header of a GGUF file, read with every length checked against the file before it is believed.

The ``gguf`` package supplies the constants and the dequantisers. Its reader is not used: it walks counts and lengths
as they stand in the file, which a damaged one turns into an endless loop, and takes seconds for a vocabulary.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType
from gguf.gguf_writer import GGUFValue
from gguf.quants import dequantize

from fdpp.errors import CheckpointError, one_line, prefix_errors

_VERSIONS = (2, 3)
_MAX_ENTRIES = 1 << 16  # tensors, or metadata pairs; the largest models have a few thousand
_MAX_DIMS = 4
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
    GGUFValueType.BOOL: "?",
}
_NUMPY_FLOATS: dict[GGMLQuantizationType, np.dtype[Any]] = {
    GGMLQuantizationType.F32: np.dtype("<f4"),
    GGMLQuantizationType.F16: np.dtype("<f2"),
    GGMLQuantizationType.F64: np.dtype("<f8"),
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: its row-major shape, its storage type, and the bytes of one row."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    row_bytes: int

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])


class GGUFFile:
    """A GGUF file, mapped.

    Attributes:
        metadata: the key/value pairs.
        tensors: name to :class:`TensorInfo`.

    Raises:
        CheckpointError: the file is damaged, truncated, or not GGUF version 2 or 3 in little-endian order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise CheckpointError(f"{path}: {one_line(error)}") from error
        with prefix_errors(path):
            self.metadata, self.tensors = _read_header(_Cursor(self._data))

    def pairs(self) -> dict[str, GGUFValue]:
        """The key/value pairs with their types, and texts as the bytes that they are: to be written again."""
        cursor = _Cursor(self._data, text=bytes)
        return _read_pairs(cursor, _read_counts(cursor)[1])

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` of a tensor, as a new float32 array ``[stop - start, columns]``."""
        info = self.tensors[name]
        data = np.frombuffer(
            self._data, np.uint8, (stop - start) * info.row_bytes, info.offset + start * info.row_bytes
        ).reshape(stop - start, info.row_bytes)
        if info.kind in _NUMPY_FLOATS:
            return data.view(_NUMPY_FLOATS[info.kind]).astype(np.float32)
        try:
            with np.errstate(all="ignore"):  # damaged scales overflow; the caller refuses what is not finite
                # As one long row, because the dequantisers go through rows in small groups. Blocks never cross rows.
                return dequantize(data.reshape(1, -1), info.kind).reshape(stop - start, -1)
        except (NotImplementedError, ValueError) as error:
            raise CheckpointError(f"{self.path}: tensor {name}: {info.kind.name}: {one_line(error)}") from error

    def row_addresses(self, name: str) -> np.ndarray:
        """Where each row of a tensor lies in memory, int64; the file stays mapped as long as this object."""
        info = self.tensors[name]
        base: int = np.frombuffer(self._data, np.uint8, 1, info.offset).ctypes.data
        return base + info.row_bytes * np.arange(info.rows, dtype=np.int64)

    def release(self, name: str) -> None:
        """Let the system take back the pages of a tensor that were read; they come back when it is read again."""
        info = self.tensors[name]
        start = -(-info.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        length = info.offset + info.rows * info.row_bytes - start
        if length > 0:
            self._data.madvise(mmap.MADV_DONTNEED, start, length)


class _Cursor:
    """Reads little-endian values from the front of a buffer, never beyond its end; texts become what ``text`` makes."""

    def __init__(self, data: mmap.mmap, text: Callable[[bytes], Any] | None = None) -> None:
        self.data = data
        self.position = 0
        self._text = text or _decoded

    def skip(self, count: int) -> int:
        """Move on by ``count`` bytes and return where they start."""
        start = self.position
        if count > len(self.data) - start:
            raise CheckpointError(f"truncated: {count} bytes expected at offset {start} of {len(self.data)}")
        self.position += count
        return start

    def unpack(self, layout: str) -> tuple[Any, ...]:
        layout = "<" + layout
        return struct.unpack_from(layout, self.data, self.skip(struct.calcsize(layout)))

    def string(self) -> bytes:
        (length,) = self.unpack("Q")
        start = self.skip(length)
        return self.data[start : start + length]

    def name(self) -> str:
        return _decoded(self.string())

    def value(self) -> GGUFValue:
        kind = self.value_type()
        if kind != GGUFValueType.ARRAY:
            is_text = kind == GGUFValueType.STRING
            return GGUFValue(self._text(self.string()) if is_text else self.unpack(_SCALARS[kind])[0], kind)
        element = self.value_type()
        (count,) = self.unpack("Q")
        return GGUFValue(self.elements(element, count), kind, element)

    def elements(self, kind: GGUFValueType, count: int) -> list[Any]:
        if kind == GGUFValueType.ARRAY:
            raise CheckpointError("nested arrays in the metadata")
        if kind == GGUFValueType.STRING:
            return [self._text(self.string()) for _ in range(self.bounded(count, minimum_bytes=8))]
        dtype = np.dtype("<" + _SCALARS[kind])
        return np.frombuffer(self.data, dtype, count, self.skip(count * dtype.itemsize)).tolist() if count else []

    def value_type(self) -> GGUFValueType:
        (number,) = self.unpack("I")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise CheckpointError(f"metadata of unknown type {number}") from None

    def bounded(self, count: int, minimum_bytes: int) -> int:
        """A count of things of at least ``minimum_bytes`` each, which must fit into the rest of the file."""
        if count * minimum_bytes > len(self.data) - self.position:
            raise CheckpointError(f"truncated: a count of {count} at offset {self.position} of {len(self.data)}")
        return count


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", errors="replace")


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
    """How many tensors and how many pairs there are."""
    if cursor.unpack("4s") != (b"GGUF",):
        raise CheckpointError("not a GGUF file")
    version, tensor_count, pair_count = cursor.unpack("IQQ")
    if version not in _VERSIONS:
        raise CheckpointError(f"GGUF version: expected one of {_VERSIONS}, got {version}")
    for what, count in (("tensors", tensor_count), ("metadata pairs", pair_count)):
        if count > _MAX_ENTRIES:
            raise CheckpointError(f"{what}: expected at most {_MAX_ENTRIES}, got {count}")
    return tensor_count, pair_count


def _read_pairs(cursor: _Cursor, count: int) -> dict[str, GGUFValue]:
    return {cursor.name(): cursor.value() for _ in range(count)}


def _read_header(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    tensor_count, pair_count = _read_counts(cursor)
    metadata = {key: pair.value for key, pair in _read_pairs(cursor, pair_count).items()}
    entries = [(cursor.name(), *_read_tensor_entry(cursor)) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= 1 << 20:
        raise CheckpointError(f"general.alignment: expected an integer in 1..{1 << 20}, got {alignment!r:.80}")
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, shape, kind, offset in entries:
        if name in tensors:
            raise CheckpointError(f"tensor {name!r:.80} occurs twice")
        tensors[name] = _place(name, shape, kind, data_start + offset, len(cursor.data))
    return metadata, tensors


def _read_tensor_entry(cursor: _Cursor) -> tuple[tuple[int, ...], int, int]:
    (num_dims,) = cursor.unpack("I")
    if not 1 <= num_dims <= _MAX_DIMS:
        raise CheckpointError(f"a tensor of {num_dims} dimensions; expected 1..{_MAX_DIMS}")
    *dims, kind, offset = cursor.unpack(f"{num_dims}QIQ")
    return tuple(reversed(dims)), kind, offset  # GGUF names the fastest dimension first


def _place(name: str, shape: tuple[int, ...], kind: int, offset: int, file_size: int) -> TensorInfo:
    try:
        kind = GGMLQuantizationType(kind)
    except ValueError:
        raise CheckpointError(f"tensor {name!r:.80}: unknown storage type {kind}") from None
    block, block_bytes = GGML_QUANT_SIZES[kind]
    columns = shape[-1]
    if prod(shape) == 0 or columns % block:
        raise CheckpointError(f"tensor {name!r:.80}: shape {shape} does not fit blocks of {block} ({kind.name})")
    info = TensorInfo(shape, kind, offset, columns // block * block_bytes)
    if info.rows * info.row_bytes > file_size - offset:
        raise CheckpointError(f"tensor {name!r:.80}: truncated: it ends beyond the file's {file_size} bytes")
    return info
