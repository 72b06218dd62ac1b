"""The interface of all kinds of checkpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from fdpp.errors import CheckpointError
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

    @property
    def only_values(self) -> str | None:
        """What its matrices of few bits are called, where fdpp has no format that holds them as they are stored."""
        return None

    @abstractmethod
    def read_into(self, name: str, out: Tensor) -> None:
        """Write the tensor into ``out``, of the same shape and any floating dtype, converting as needed."""

    def stored_format(self, name: str) -> str | None:
        """The format of the :meth:`stored_rows` of a matrix of few bits; None for a tensor that is stored otherwise."""
        return None

    def is_quantised(self, name: str) -> bool:
        """Whether its values were rounded to few bits."""
        return False

    def column_order(self, name: str) -> Tensor | None:
        """int64 ``[columns]``: the order in which :meth:`stored_rows` gives the columns; None for their own."""
        return None

    def stored_rows(self, name: str) -> StoredRows:
        """The rows of a matrix that has a :meth:`stored_format`: as many as :attr:`shapes` says."""
        raise CheckpointError(f"tensor {name}: expected weights of few bits")

    def says_nothing(self, name: str) -> bool:
        """Whether a model without a place for the tensor is the same: some files have biases of zeros."""
        return False

    def release(self, name: str) -> None:  # noqa: B027 - most have nothing to give back
        """Give back the memory through which a tensor was read; it can be read again."""
