"""The interface of all kinds of checkpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from fdpp.formats import StoredRows
from fdpp.tokenizers import Tokenizer


class Checkpoint(ABC):
    """An opened model, in the terms of Hugging Face.

    Attributes:
        path: the file or directory.
        config: the content of ``config.json``.
        generation_config: the content of ``generation_config.json``; empty where there is none.
    """

    path: Path
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any] = MappingProxyType({})

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor by name."""

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer | None:
        """None where the checkpoint has none."""

    @property
    @abstractmethod
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens that end a text."""

    @abstractmethod
    def read_into(self, name: str, out: Tensor) -> None:
        """Write the tensor into ``out``, of the same shape and any floating dtype, converting as needed."""

    def stored_rows(self, name: str) -> StoredRows | None:
        """The rows of a matrix of few bits as they lie in the file; None for a tensor that is stored otherwise."""
        return None

    def release(self, name: str) -> None:  # noqa: B027 - most have nothing to give back
        """Give back the memory through which a tensor was read; it can be read again."""
