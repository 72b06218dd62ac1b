"""GGUF files: weights as they are stored or dequantised block by block, config and tokenizer from the metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from torch import Tensor

from fdpp._host import HEAD_DIMS
from fdpp.checkpoints.base import Checkpoint
from fdpp.checkpoints.gguf_architectures import Architecture, architecture_of
from fdpp.checkpoints.gguf_file import GGUFFile
from fdpp.checkpoints.gguf_names import hugging_face_config, tensor_name
from fdpp.checkpoints.gguf_writer import Content, NewTensor
from fdpp.errors import CheckpointError, prefix_errors
from fdpp.formats import PACKED, StoredRows
from fdpp.tokenizers import Tokenizer
from fdpp.tokenizers.gguf import end_of_text_ids, load_gguf_tokenizer

_PLAIN = (
    GGMLQuantizationType.F64,
    GGMLQuantizationType.F32,
    GGMLQuantizationType.F16,
    GGMLQuantizationType.BF16,
)
_ROPE_FACTORS = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
_MAX_ROPE_FACTORS = max(HEAD_DIMS) // 2
# What is said anew of a file whose tensors are stored in other types, or does not concern the values that it then has.
_ABOUT_FILE = ("general.architecture", "general.alignment", "split.", "quantize.imatrix.")
_BLOCK_ELEMENTS = 1 << 21  # dequantised at a time: 8 MiB of float32, which stays in the caches


class GGUFCheckpoint(Checkpoint):
    """See :class:`Checkpoint`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GGUFFile(path)
        metadata = self._file.metadata
        if metadata.get("split.count", 1) not in (0, 1):
            raise CheckpointError(f"{path}: one part of a split model; join the parts with llama.cpp's gguf-split")
        self._architecture = architecture_of(metadata.get("general.architecture"), self._file.tensors)
        self._names = {tensor_name(self._architecture, name): name for name in self._file.tensors}
        with prefix_errors(path):
            self.config = hugging_face_config(metadata, self._architecture, self._names, self._rope_factors())

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: self._file.tensors[stored].shape for name, stored in self._names.items()}

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        with prefix_errors(self.path):
            return load_gguf_tokenizer(self._file.metadata)

    @cached_property
    def eos_token_ids(self) -> frozenset[int]:
        return end_of_text_ids(self._file.metadata)

    def read_into(self, name: str, out: Tensor) -> None:
        """See :meth:`Checkpoint.read_into`. What the converter has changed is changed back."""
        if (reorder := self._reorder(name)) is not None:
            stored = torch.empty_like(out)
            self._read_stored(self._names[name], stored)
            out.copy_(reorder(stored))
        else:
            self._read_stored(self._names[name], out)
        if self._architecture.norm_offset and self._part(name).endswith("norm"):
            out -= 1

    def stored_format(self, name: str) -> str | None:
        info = self._file.tensors[self._names[name]]
        format = info.kind.name.lower()
        return format if format in PACKED and len(info.shape) == 2 else None

    def is_quantised(self, name: str) -> bool:
        return self._file.tensors[self._names[name]].kind not in _PLAIN

    def stored_rows(self, name: str) -> StoredRows:
        stored = self._names[name]
        addresses = torch.from_numpy(self._file.row_addresses(stored))
        reorder = self._reorder(name)
        format = self._file.tensors[stored].kind.name.lower()
        return StoredRows(format, addresses if reorder is None else reorder(addresses))

    def release(self, name: str) -> None:
        self._file.release(self._names[name])

    def content(self) -> Content:
        """What the file holds, to be written with other storage types: names and orders stay those of llama.cpp."""
        tensors = self._file.tensors
        head = "output.weight" if "output.weight" in tensors else "token_embd.weight"
        pairs = {
            key: pair
            for key, pair in self._file.pairs().items()
            if not key.startswith(_ABOUT_FILE) and pair.value != []  # an empty list, which the writer refuses
        }
        new = {name: NewTensor(of.shape, partial(self._values, name), name == head) for name, of in tensors.items()}
        return Content(self._file.metadata["general.architecture"], pairs, new)

    def _part(self, name: str) -> str:
        return part_of(self._names[name])

    def _reorder(self, name: str) -> Callable[[Tensor], Tensor] | None:
        return reordering(self._architecture, self._part(name), self.config)

    def _values(self, stored: str) -> np.ndarray:
        """A tensor by its own name: float32 ``[rows, columns]``."""
        info = self._file.tensors[stored]
        out = torch.empty((info.rows, info.shape[-1]), dtype=torch.float32, device="cpu")
        self._read_stored(stored, out)
        self._file.release(stored)
        return out.numpy()

    def _read_stored(self, stored: str, out: Tensor) -> None:
        rows = out.view(-1, out.shape[-1])
        step = max(1, _BLOCK_ELEMENTS // rows.shape[1])
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            block.copy_(torch.from_numpy(self._file.rows(stored, start, start + len(block))))

    def _rope_factors(self) -> dict[str, list[float]]:
        """LongRoPE's two lists, which Hugging Face keeps in the config and llama.cpp in tensors."""
        factors = {}
        for key, name in _ROPE_FACTORS.items():
            if (info := self._file.tensors.get(name)) is not None:
                if len(info.shape) != 1 or info.shape[0] > _MAX_ROPE_FACTORS:
                    raise CheckpointError(f"{name}: expected at most {_MAX_ROPE_FACTORS} numbers, got {info.shape}")
                factors[key] = self._file.rows(name, 0, 1)[0].tolist()
        return factors


def part_of(stored: str) -> str:
    """Which part of a layer a tensor of a file is: ``attn_q`` of ``blk.0.attn_q.weight``."""
    return stored.rpartition(".")[0].rpartition(".")[2]


def reordering(architecture: Architecture, part: str, config: Mapping[str, Any]) -> Callable[[Tensor], Tensor] | None:
    """What puts the rows of a part back into Hugging Face's order; None where llama.cpp has the same.

    Args:
        architecture: of the file.
        part: of :func:`part_of`.
        config: of :func:`hugging_face_config`.
    """
    head_dim = config["head_dim"]
    if architecture.rotary_pairs and part in ("attn_q", "attn_k"):
        return lambda rows: rotary_halves(rows, head_dim)
    if architecture.groups is not None and part == "attn_qkv":
        num_heads, groups = config["num_attention_heads"], architecture.groups(dict(config))
        return lambda rows: grouped_rows(rows, num_heads, groups, head_dim)
    return None


def rotary_halves(rows: Tensor, head_dim: int) -> Tensor:
    """Rows of heads in the order (pair, half), as interleaved rotary embeddings want them, to (half, pair)."""
    return rows.view(-1, head_dim // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def grouped_rows(rows: Tensor, num_heads: int, groups: int, head_dim: int) -> Tensor:
    """All queries, all keys, all values to the queries, the key and the value of each group of heads."""
    sizes = num_heads * head_dim, groups * head_dim, groups * head_dim
    parts = [part.unflatten(0, (groups, -1)) for part in rows.split(sizes)]
    return torch.cat(parts, dim=1).flatten(0, 1)
