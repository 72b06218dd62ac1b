"""From any model that fdpp loads to a GGUF file, with weights in a format of choice."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fdpp.checkpoints.gguf import GGUFCheckpoint
from fdpp.checkpoints.gguf_writer import write_gguf
from fdpp.checkpoints.loading import Progress
from fdpp.errors import RequestError, prefix_errors
from fdpp.export.hugging_face import content_of
from fdpp.file_formats import FILE_FORMATS
from fdpp.llm import open_model


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: of the file.
        types: how many tensors each storage type has.
        quantised: how many of the model's tensors were of few bits before.
    """

    path: Path
    types: Counter[str]
    quantised: int


def export(
    model: str | Path, output: str | Path, format: str, force: bool = False, progress: Progress | None = None
) -> Exported:
    """Write a model as a GGUF file.

    Args:
        model: a Hugging Face directory or hub id, or a GGUF file.
        output: the file to write; a reader sees it whole or not at all.
        format: one of :data:`fdpp.file_formats.FILE_FORMATS`.
        force: replace a file that exists.
        progress: called with (tensors written, tensors in all, name).

    Raises:
        CheckpointError: the model cannot be used, or a GGUF file cannot hold it.
        RequestError: an unknown format, or an output that exists or has no directory.
        OSError: the file cannot be written.
    """
    path = Path(output).expanduser()
    if format not in FILE_FORMATS:
        raise RequestError(f"format: expected one of {', '.join(FILE_FORMATS)}, got {format!r:.80}")
    if not path.parent.is_dir():
        raise RequestError(f"{path}: there is no directory {path.parent}")
    if path.is_dir() or (path.exists() and not force):
        wanted = "the name of a file" if path.is_dir() else "the name of a new file, or --force"
        raise RequestError(f"{path}: exists; expected {wanted}")
    checkpoint, built = open_model(model)
    with prefix_errors(model):
        if isinstance(checkpoint, GGUFCheckpoint):
            content = checkpoint.content()
        else:
            content = content_of(checkpoint, built, _title(model))
        types = write_gguf(path, content, format, progress)
        return Exported(path, types, sum(map(checkpoint.is_quantised, checkpoint.shapes)))


def _title(model: str | Path) -> str:
    """The last part of the name, as text that can be written whatever bytes it has."""
    return os.path.basename(os.path.abspath(model)).encode("utf-8", "replace").decode("utf-8")
