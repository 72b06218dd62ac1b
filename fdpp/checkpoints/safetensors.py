"""Hugging Face directories: ``config.json``, safetensors in one file or in shards, tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fdpp.checkpoints.base import Checkpoint
from fdpp.errors import CheckpointError, one_line, prefix_errors
from fdpp.tokenizers import Tokenizer, load_directory_tokenizer

if TYPE_CHECKING:
    from safetensors import safe_open

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".safetensors", ".gguf")
# What the parts of a decoder begin with in a model with a head, by model_type, and the parts that it has.
_DECODERS = {
    "opt": ("model.", ("decoder.",)),
    "gpt_neox": ("gpt_neox.", ("embed_in.", "layers.", "final_layer_norm.")),
    "bloom": ("transformer.", ("word_embeddings.", "word_embeddings_layernorm.", "h.", "ln_f.")),
    "falcon": ("transformer.", ("word_embeddings.", "h.", "ln_f.")),
    "mpt": ("transformer.", ("wte.", "blocks.", "norm_f.")),
}
_USUAL_DECODER = ("model.", ("embed_tokens.", "layers.", "norm."))
_MAX_JSON_BYTES = 64 << 20
_FLOATS = {"F64", "F32", "F16", "BF16"}


class SafetensorsCheckpoint(Checkpoint):
    """See :class:`Checkpoint`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_json(path / "config.json")
        if self.config.get("quantization_config"):
            raise CheckpointError(f"{path}: quantised safetensors are not supported; GGUF files may be quantised")
        if (path / "generation_config.json").exists():
            self.generation_config = read_json(path / "generation_config.json")

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        tensors = self._tensors
        with prefix_errors(self.path):
            return {name: _shape(*source) for name, source in tensors.items()}

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        return load_directory_tokenizer(self.path)

    @cached_property
    def eos_token_ids(self) -> frozenset[int]:
        """Where both files name ends, generation_config.json counts, as in transformers. The end that the tokenizer
        names counts always: fine-tuned chat models often change it there only."""
        with prefix_errors(self.path / "config.json"):
            ids = _eos_ids(self.config)
        with prefix_errors(self.path / "generation_config.json"):
            ids = _eos_ids(self.generation_config) or ids
        own = self.tokenizer.eos_token_id if self.tokenizer else None
        return frozenset(ids) if own is None else frozenset({*ids, own})

    def read_into(self, name: str, out: Tensor) -> None:
        try:
            file, stored = self._tensors[name]
            out.copy_(file.get_tensor(stored))
        except Exception as error:  # safetensors raises its own error, torch a RuntimeError
            raise CheckpointError(f"{self.path}: tensor {name}: {one_line(error)}") from error

    @cached_property
    def _tensors(self) -> dict[str, tuple[Any, str]]:
        files = [_open_safetensors(file) for file in _weight_files(self.path)]
        with prefix_errors(self.path):
            return _tensors_of(files, *_DECODERS.get(str(self.config.get("model_type")), _USUAL_DECODER))


def _eos_ids(config: Mapping[str, Any]) -> list[int]:
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int for token in ids):
        raise CheckpointError(f"eos_token_id: expected an integer or a list of them, got {value!r:.80}")
    return ids


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of bounded size."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: larger than {_MAX_JSON_BYTES >> 20} MiB")
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _weight_files(path: Path) -> list[Path]:
    """The single file where there is one, as transformers chooses: an index beside it is left of an earlier save."""
    if (path / _SINGLE).exists():
        return [path / _SINGLE]
    if not (path / _INDEX).exists():
        raise CheckpointError(f"{path}: expected {_SINGLE} or {_INDEX}{_other_weights(path)}")
    weight_map = read_json(path / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path / _INDEX}: expected an object 'weight_map' of tensor names to files")
    for name in weight_map.values():
        # A plain file name: anything else could reach outside the directory.
        if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name or "\\" in name:
            raise CheckpointError(f"{path / _INDEX}: expected plain names of .safetensors files, got {name!r:.80}")
    return [path / name for name in sorted(set(weight_map.values()))]


def _other_weights(path: Path) -> str:
    """What the directory holds instead of safetensors, as the end of a sentence."""
    found = sorted(file.name for file in path.iterdir() if file.suffix in _OTHER_WEIGHTS)
    pickled = any(name.endswith((".bin", ".pt", ".pth")) for name in found)
    hint = "; pickled weights are not read: save them as safetensors" if pickled else ""
    return f", found {', '.join(found[:3])}{hint}" if found else ""


def _tensors_of(files: list[Any], prefix: str, parts: tuple[str, ...]) -> dict[str, tuple[Any, str]]:
    """Each tensor's name in a model with a head, with the file that holds it and its name there."""
    tensors: dict[str, tuple[Any, str]] = {}
    for file in files:
        for stored in file.keys():
            # AutoModel saves a decoder without its head, and without the prefix that the decoder has below a head.
            name = f"{prefix}{stored}" if stored.startswith(parts) else stored
            if name in tensors:
                spelled = "" if tensors[name][1] == stored else f", as {tensors[name][1]!r:.80} and {stored!r:.80}"
                raise CheckpointError(f"tensor {name!r:.80} occurs twice{spelled}")
            tensors[name] = file, stored
    return tensors


def _open_safetensors(path: Path) -> safe_open:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        # Checks the header against the length of the file: every tensor lies inside it.
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {one_line(error)}") from error


def _shape(file: safe_open, name: str) -> tuple[int, ...]:
    view = file.get_slice(name)
    if (dtype := view.get_dtype()) not in _FLOATS:
        raise CheckpointError(f"tensor {name}: expected a dtype of {sorted(_FLOATS)}, got {dtype}")
    return tuple(torch.Size(view.get_shape()))
