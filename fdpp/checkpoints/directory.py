"""Hugging Face directories: ``config.json``, weights in one file or in shards, tokenizer files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from fdpp.checkpoints.base import Checkpoint
from fdpp.checkpoints.quantization_config import method_of
from fdpp.checkpoints.quantized_modules import QuantizedModules
from fdpp.checkpoints.weight_files import ENDINGS, WeightFile, open_weight_file
from fdpp.errors import CheckpointError, one_line, prefix_errors
from fdpp.formats import StoredRows
from fdpp.tokenizers import Tokenizer, load_directory_tokenizer

# In the order of preference: transformers', too.
_SINGLES, _INDEXES = ([f"model.safetensors{end}", f"pytorch_model.bin{end}"] for end in ("", ".index.json"))
_OTHER_WEIGHTS = (*ENDINGS, ".pt", ".pth", ".gguf")
# What the parts of a decoder begin with in a model with a head, by model_type, and the parts that it has.
_DECODERS = {
    "opt": ("model.", ("decoder.",)),
    "gpt_neox": ("gpt_neox.", ("embed_in.", "layers.", "final_layer_norm.")),
    "bloom": ("transformer.", ("word_embeddings.", "word_embeddings_layernorm.", "h.", "ln_f.")),
    "falcon": ("transformer.", ("word_embeddings.", "h.", "ln_f.")),
    "mpt": ("transformer.", ("wte.", "blocks.", "norm_f.")),
}
# Of a model that sees, the model of text is read: its config stands in text_config.
_TEXT_MODELS = {"gemma3": "gemma3_text"}
_TEXT_PREFIXES = {
    "language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.lm_head.": "lm_head.",
}
_OTHER_SENSES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_USUAL_DECODER = ("model.", ("embed_tokens.", "layers.", "norm."))
_MAX_JSON_BYTES = 64 << 20


class DirectoryCheckpoint(Checkpoint):
    """See :class:`Checkpoint`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole_config = read_json(path / "config.json")
        self.config = _text_config(self._whole_config)
        with prefix_errors(path):
            self._method = method_of(self.config)
        if (path / "generation_config.json").exists():
            self.generation_config = read_json(path / "generation_config.json")

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        quantized = self._quantized
        with prefix_errors(self.path):
            return {name: file.shape(stored) for name, (file, stored) in quantized.plain.items()} | quantized.shapes

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        return load_directory_tokenizer(self.path)

    @cached_property
    def eos_token_ids(self) -> frozenset[int]:
        """Where both files name ends, generation_config.json counts, as in transformers. The end that the tokenizer
        names counts always: fine-tuned chat models often change it there only."""
        with prefix_errors(self.path / "config.json"):
            ids = _eos_ids(self._whole_config) or _eos_ids(self.config)
        with prefix_errors(self.path / "generation_config.json"):
            ids = _eos_ids(self.generation_config) or ids
        own = self.tokenizer.eos_token_id if self.tokenizer else None
        return frozenset(ids) if own is None else frozenset({*ids, own})

    def read_into(self, name: str, out: Tensor) -> None:
        with self._reading(name):
            if name in self._quantized:
                return self._quantized.read_into(name, out)
            file, stored = self._tensors[name]
            out.copy_(file.tensor(stored))

    def stored_format(self, name: str) -> str | None:
        with self._reading(name):
            return self._quantized.format(name) if name in self._quantized else None

    def is_quantised(self, name: str) -> bool:
        return name in self._quantized

    def column_order(self, name: str) -> Tensor | None:
        with self._reading(name):
            return self._quantized.order(name) if name in self._quantized else None

    def stored_rows(self, name: str) -> StoredRows:
        with self._reading(name):
            return self._quantized.stored_rows(name)

    @property
    def only_values(self) -> str | None:
        return self._method.only_values if self._method is not None else None

    def says_nothing(self, name: str) -> bool:
        with self._reading(name):
            return self._quantized.is_zero_bias(name)

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:  # safetensors raises its own error, torch a RuntimeError
            raise CheckpointError(f"{self.path}: tensor {name}: {one_line(error)}") from error

    @cached_property
    def _quantized(self) -> QuantizedModules:
        tensors = self._tensors
        with prefix_errors(self.path):
            return QuantizedModules(self._method, tensors)

    @cached_property
    def _tensors(self) -> dict[str, tuple[WeightFile, str]]:
        files = [open_weight_file(file) for file in _weight_files(self.path)]
        with prefix_errors(self.path):
            if self.config is not self._whole_config:
                return _text_tensors(files)
            return _tensors_of(files, *_DECODERS.get(str(self.config.get("model_type")), _USUAL_DECODER))


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the model of text, where there are other models beside it."""
    model_type, text = config.get("model_type"), config.get("text_config")
    if not isinstance(model_type, str) or model_type not in _TEXT_MODELS or not isinstance(text, Mapping):
        return config
    quantised = {key: config[key] for key in ("quantization_config",) if key in config}
    return {"model_type": _TEXT_MODELS[model_type], **text, **quantised}


def _text_tensors(files: list[WeightFile]) -> dict[str, tuple[WeightFile, str]]:
    """The tensors of the model of text, under the names that they have in a model of text alone."""
    tensors = {}
    for file in files:
        for stored in file.names():
            if not stored.startswith(_OTHER_SENSES):
                prefix = next((prefix for prefix in _TEXT_PREFIXES if stored.startswith(prefix)), "")
                tensors[_TEXT_PREFIXES.get(prefix, "") + stored.removeprefix(prefix)] = file, stored
    return tensors


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
    for single, index in zip(_SINGLES, _INDEXES, strict=True):
        if (path / single).exists():
            return [path / single]
        if (path / index).exists():
            return _shards(path / index)
    raise CheckpointError(f"{path}: expected {' or '.join(_SINGLES)}, or an index of either{_other_weights(path)}")


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: expected an object 'weight_map' of tensor names to files")
    for name in weight_map.values():
        # A plain file name: anything else could reach outside the directory.
        if not isinstance(name, str) or not name.endswith(ENDINGS) or Path(name).name != name or "\\" in name:
            raise CheckpointError(f"{index}: expected plain names of {' or '.join(ENDINGS)} files, got {name!r:.80}")
    return [index.parent / name for name in sorted(set(weight_map.values()))]


def _other_weights(path: Path) -> str:
    """What the directory holds instead, as the end of a sentence."""
    found = sorted(file.name for file in path.iterdir() if file.suffix in _OTHER_WEIGHTS)
    return f", found {', '.join(found[:3])}" if found else ""


def _tensors_of(files: list[WeightFile], prefix: str, parts: tuple[str, ...]) -> dict[str, tuple[WeightFile, str]]:
    """Each tensor's name in a model with a head, with the file that holds it and its name there."""
    tensors: dict[str, tuple[WeightFile, str]] = {}
    for file in files:
        for stored in file.names():
            # AutoModel saves a decoder without its head, and without the prefix that the decoder has below a head.
            name = f"{prefix}{stored}" if stored.startswith(parts) else stored
            if name in tensors:
                spelled = "" if tensors[name][1] == stored else f", as {tensors[name][1]!r:.80} and {stored!r:.80}"
                raise CheckpointError(f"tensor {name!r:.80} occurs twice{spelled}")
            tensors[name] = file, stored
    return tensors
