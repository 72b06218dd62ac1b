"""Where models come from: one interface over Hugging Face directories, hub ids and GGUF files."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fdpp.engine.config import DecoderConfig
from fdpp.engine.families.base import WeightNames
from fdpp.errors import CheckpointError, one_line

if TYPE_CHECKING:
    from fdpp.engine.tokenizer import Tokenizer

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.json", "model*.safetensors", "*.model", "*.txt", "*.jinja"]


class Checkpoint(ABC):
    """An opened model. Everything but the values of the weights has been read and checked.

    Attributes:
        config: the decoder.
        weight_names: the names of its weights.
        shapes: the shape of each tensor by name.
        eos_token_ids: the tokens that end a text.
        generation_config: the content of ``generation_config.json``; empty where there is none.
    """

    config: DecoderConfig
    weight_names: WeightNames
    shapes: Mapping[str, tuple[int, ...]]
    eos_token_ids: frozenset[int]
    generation_config: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def read_into(self, name: str, out: Tensor) -> None:
        """Write the tensor into ``out``, of the same shape and any floating dtype, converting as needed."""

    @abstractmethod
    def load_tokenizer(self) -> Tokenizer | None:
        """The tokenizer, or None where the checkpoint has none."""

    def rope_divisors(self) -> Tensor | None:
        """float32 ``[head_dim / 2]`` by which the rotary frequencies are divided, where the file holds such a table."""
        return None


def open_checkpoint(model: str | Path) -> Checkpoint:
    """Open a model.

    Args:
        model: a directory with ``config.json`` and safetensors, a ``.gguf`` file, or a Hugging Face hub id, which is
            downloaded unless a local path of that name exists.

    Raises:
        CheckpointError: there is no such model, or it is damaged, hostile or of an unknown kind.
    """
    path = Path(os.path.expanduser(model))
    if os.path.isdir(path):
        return _open_directory(path)
    if os.path.isfile(path):
        from fdpp.engine.gguf_checkpoint import GGUFCheckpoint

        return GGUFCheckpoint(path)
    if _HUB_ID.fullmatch(str(model)) and not str(model).endswith(".gguf"):
        return _open_directory(_download(str(model)))
    raise CheckpointError(f"{model}: no such file or directory, and not a hub id of the form owner/name")


def _open_directory(path: Path) -> Checkpoint:
    from fdpp.engine.safetensors_checkpoint import SafetensorsCheckpoint

    return SafetensorsCheckpoint(path)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub client raises many kinds: no network, no such model, no permission, no space
        raise CheckpointError(f"{hub_id}: cannot be downloaded: {one_line(error)}") from error
