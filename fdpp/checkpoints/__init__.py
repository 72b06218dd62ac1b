"""Where models come from: Hugging Face directories, hub ids and GGUF files behind one interface."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fdpp.checkpoints.base import Checkpoint
from fdpp.errors import CheckpointError, one_line

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.json", "model*.safetensors", "*.model", "*.txt", "*.jinja"]
_OLD_HUB_FILES = ["pytorch_model*.bin"]  # of models that have no safetensors


def open_checkpoint(model: str | Path) -> Checkpoint:
    """Open a model.

    Args:
        model: a directory with ``config.json`` and weights in ``.safetensors`` or ``.bin`` files, a ``.gguf`` file, or
            a Hugging Face hub id, which is downloaded unless a local path of that name exists.

    Raises:
        CheckpointError: there is no such model, or it is damaged, hostile or of an unknown kind.
    """
    path = Path(os.path.expanduser(model))
    if os.path.isdir(path):
        return _open_directory(path)
    if os.path.isfile(path):
        from fdpp.checkpoints.gguf import GGUFCheckpoint

        return GGUFCheckpoint(path)
    if _HUB_ID.fullmatch(str(model)) and not str(model).endswith(".gguf"):
        return _open_directory(_download(str(model)))
    raise CheckpointError(f"{model}: no such file or directory, and not a hub id of the form owner/name")


def _open_directory(path: Path) -> Checkpoint:
    from fdpp.checkpoints.directory import DirectoryCheckpoint

    return DirectoryCheckpoint(path)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        path = Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
        if not any(path.glob("*.safetensors")):
            path = Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES + _OLD_HUB_FILES))
        return path
    except Exception as error:  # the hub client raises many kinds: no network, no such model, no permission, no space
        raise CheckpointError(f"{hub_id}: cannot be downloaded: {one_line(error)}") from error
