"""GGUF files: weights dequantised block by block, config and tokenizer from the metadata."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fdpp.engine.checkpoint import Checkpoint
from fdpp.engine.config import HEAD_DIMS
from fdpp.engine.families import family_of_model_type
from fdpp.engine.families.gguf_map import hugging_face_config, tensor_name
from fdpp.engine.gguf_file import GGUFFile
from fdpp.engine.gguf_tokenizer import end_of_text_ids, load_gguf_tokenizer
from fdpp.engine.tokenizer import Tokenizer
from fdpp.errors import CheckpointError, about

_ROPE_DIVISORS = "rope_freqs.weight"
_ROPE_FACTORS = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
_MAX_ROPE_FACTORS = max(HEAD_DIMS) // 2
_BLOCK_ELEMENTS = 1 << 21  # dequantised at a time: 8 MiB of float32, which stays in the caches


class GGUFCheckpoint(Checkpoint):
    """See :class:`Checkpoint`."""

    def __init__(self, path: Path) -> None:
        self._file = GGUFFile(path)
        metadata = self._file.metadata
        if metadata.get("split.count", 1) not in (0, 1):
            raise CheckpointError(f"{path}: one part of a split model; join the parts with llama.cpp's gguf-split")
        self._names = {tensor_name(name): name for name in self._file.tensors}
        self.shapes = {name: self._file.tensors[stored].shape for name, stored in self._names.items()}
        with about(path):
            family = family_of_model_type(metadata.get("general.architecture"))
            self.config = family.read_config(hugging_face_config(metadata, self.shapes, self._rope_factors()))
            self._tokenizer = load_gguf_tokenizer(metadata)
        self.weight_names = family.weight_names
        self.eos_token_ids = end_of_text_ids(metadata)
        # The rotation concerns q and k, the first two parts of qkv.
        self._permuted = frozenset(
            part.format(i=i) + suffix
            for part in (self.weight_names.qkv[:2] if family.gguf_rope_permuted else ())
            for i in range(self.config.num_layers)
            for suffix in (".weight", ".bias")
        )

    def read_into(self, name: str, out: Tensor) -> None:
        """See :meth:`Checkpoint.read_into`. Rows stored as (pair, half) for interleaved rope become (half, pair)."""
        if name not in self._permuted:
            return self._read_stored(name, out)
        stored = torch.empty_like(out)
        self._read_stored(name, stored)
        pairs = stored.view(-1, self.config.head_dim // 2, 2, *out.shape[1:])
        out.copy_(pairs.transpose(1, 2).reshape(out.shape))

    def _read_stored(self, name: str, out: Tensor) -> None:
        rows = out.view(-1, out.shape[-1])
        step = max(1, _BLOCK_ELEMENTS // rows.shape[1])
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            block.copy_(torch.from_numpy(self._file.rows(self._names[name], start, start + len(block))))

    def _rope_factors(self) -> dict[str, list[float]]:
        """LongRoPE's two lists, which Hugging Face keeps in the config and llama.cpp in tensors."""
        factors = {}
        for key, name in _ROPE_FACTORS.items():
            if (info := self._file.tensors.get(name)) is not None:
                if len(info.shape) != 1 or info.shape[0] > _MAX_ROPE_FACTORS:
                    raise CheckpointError(f"{name}: expected at most {_MAX_ROPE_FACTORS} numbers, got {info.shape}")
                factors[key] = self._file.rows(name, 0, 1)[0].tolist()
        return factors

    def load_tokenizer(self) -> Tokenizer | None:
        return self._tokenizer

    def rope_divisors(self) -> Tensor | None:
        """See :meth:`Checkpoint.rope_divisors`: llama.cpp stores Llama 3's scaling as such a table."""
        if _ROPE_DIVISORS not in self.shapes:
            return None
        expected = (self.config.head_dim // 2,)
        if self.shapes[_ROPE_DIVISORS] != expected:
            raise CheckpointError(f"{_ROPE_DIVISORS}: expected shape {expected}, got {self.shapes[_ROPE_DIVISORS]}")
        divisors = torch.empty(expected, dtype=torch.float32, device="cpu")
        self._read_stored(_ROPE_DIVISORS, divisors)
        if not (divisors > 0).all() or not divisors.isfinite().all():
            raise CheckpointError(f"{_ROPE_DIVISORS}: expected positive numbers")
        return divisors
