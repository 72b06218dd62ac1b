"""Writing a GGUF file: which storage type each tensor gets, and the file as a whole.

The ``gguf`` package supplies the quantisers and the layout of the file.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGML_QUANT_VERSION, GGMLQuantizationType, GGUFValueType, LlamaFileType
from gguf.gguf_writer import GGUFValue, GGUFWriter
from gguf.quants import quantize

from fdpp.checkpoints.loading import Progress
from fdpp.errors import CheckpointError
from fdpp.file_formats import FILE_FORMATS

_PIECE = 1 << 17  # elements quantised at a time: 512 KiB of float32, which stays in the cache
# The largest magnitude that a type stores. Scales, minimums and plain values of the others are float16.
_LARGEST = {
    GGMLQuantizationType.F32: float(np.finfo(np.float32).max),
    GGMLQuantizationType.BF16: float.fromhex("0x1.fep+127"),
}
_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class NewTensor:
    """A tensor of the new file.

    Attributes:
        shape: row-major.
        read: gives its values, float32 ``[rows, columns]``.
        is_head: whether logits come of it.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    is_head: bool = False


@dataclass(frozen=True)
class Content:
    """What a file holds before its storage types are chosen.

    Attributes:
        architecture: ``general.architecture``.
        metadata: the other key/value pairs.
        tensors: by name.
    """

    architecture: str
    metadata: Mapping[str, GGUFValue]
    tensors: Mapping[str, NewTensor]


def typed(value: Any) -> GGUFValue:
    """A value as the converters of llama.cpp store it: integers without a sign, numbers as float32."""
    if isinstance(value, list):
        return GGUFValue(value, GGUFValueType.ARRAY, GGUFValueType.get_type(value[0]))
    is_integer = type(value) is int
    return GGUFValue(value, GGUFValueType.UINT32 if is_integer else GGUFValueType.get_type(value))


def storage_type(tensor: NewTensor, format: str) -> GGMLQuantizationType:
    """How a tensor is stored in a file of a format.

    Vectors stay float32. The head gets 8 bits where matrices get fewer, as llama.cpp gives it more bits than the rest;
    rows that are no whole number of blocks get float16.
    """
    if len(tensor.shape) < 2:
        return GGMLQuantizationType.F32
    kind = GGMLQuantizationType[format.upper()]
    if tensor.is_head and GGML_QUANT_SIZES[kind][0] > 1:
        kind = GGMLQuantizationType.Q8_0
    return kind if tensor.shape[-1] % GGML_QUANT_SIZES[kind][0] == 0 else GGMLQuantizationType.F16


def write_gguf(path: Path, content: Content, format: str, progress: Progress | None = None) -> Counter[str]:
    """Write a file as a whole, one tensor after the other: a reader sees the old file or the new one, never a part.

    Args:
        path: of the file, which is replaced where it exists.
        content: what it holds.
        format: one of :data:`fdpp.file_formats.FILE_FORMATS`.
        progress: called with (tensors written, tensors in all, name).

    Returns:
        how many tensors each storage type has.

    Raises:
        CheckpointError: a tensor has values that its type cannot store.
        OSError: the file cannot be written.
    """
    kinds = {name: storage_type(tensor, format) for name, tensor in content.tensors.items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    writer = GGUFWriter(partial, content.architecture)
    file_type = typed(int(LlamaFileType[FILE_FORMATS[format]]))
    version = typed(GGML_QUANT_VERSION)
    about_file = {"general.file_type": file_type, "general.quantization_version": version}
    for key, pair in {**content.metadata, **about_file}.items():
        writer.add_key_value(key, pair.value, pair.type, pair.sub_type)
    for name, tensor in content.tensors.items():
        block, block_bytes = GGML_QUANT_SIZES[kinds[name]]
        size = int(np.prod(tensor.shape, dtype=np.int64)) // block * block_bytes
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kinds[name])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, (name, tensor) in enumerate(content.tensors.items()):
            if progress is not None:
                progress(done, len(kinds), name)
            writer.write_tensor_data(_encoded(name, tensor.read(), kinds[name]))
        writer.close()
        os.replace(partial, path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
    return Counter(kind.name.lower() for kind in kinds.values())


def _encoded(name: str, rows: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """The bytes of float32 ``[rows, columns]`` as one uint8 array."""
    low, high = float(rows.min()), float(rows.max())
    if not max(-low, high) <= (largest := _LARGEST.get(kind, _LARGEST_FLOAT16)):  # a NaN is in no range
        raise CheckpointError(
            f"tensor {name}: expected values within +-{largest:g} for {kind.name}, got {low} to {high}"
        )
    step = max(1, _PIECE // rows.shape[1])
    # As one long row, because the quantisers go through rows in small groups. Blocks never cross rows.
    pieces = (rows[start : start + step].reshape(1, -1) for start in range(0, len(rows), step))
    return np.concatenate([quantize(piece, kind).view(np.uint8).ravel() for piece in pieces])
