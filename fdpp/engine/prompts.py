"""What users pass as prompts: texts, token ids, arrays of ids, lists of any of those."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fdpp.engine.values import plain
from fdpp.errors import RequestError, show

Ids = Sequence[int] | np.ndarray | Tensor
Prompts = str | Ids | Sequence[str] | Sequence[Ids]


def list_of_prompts(prompts: Prompts) -> list[str | list[int]]:
    """Each prompt, as a text or as the list of its ids, which are not checked yet.

    Raises:
        RequestError: a prompt that is empty or neither of these, or no prompt at all.
    """
    items = [prompts] if isinstance(prompts, str) else _items(prompts)
    if not items:
        raise RequestError(f"prompts: expected a text, token ids, or a list of either, got {show(prompts)}")
    if all(type(item) is int for item in items):
        items = [items]
    return [_prompt(item) for item in items]


def check_tokens(ids: Sequence[int], vocab_size: int, max_seq_len: int) -> list[int]:
    """The ids of a prompt that the model and its context take.

    Raises:
        RequestError: an id that is none, or as many tokens as the context holds.
    """
    ids = check_ids("prompt", ids, vocab_size)
    if not 1 <= len(ids) < max_seq_len:
        raise RequestError(f"prompt: expected 1..{max_seq_len - 1} tokens, got {len(ids)}")
    return ids


def check_ids(name: str, ids: object, vocab_size: int) -> list[int]:
    """The ids as a list of Python's integers.

    Raises:
        RequestError: they are no integers in ``0..vocab_size - 1``.
    """
    items = _items(ids)
    if items is None:
        raise RequestError(f"{name}: expected a list of token ids, got {show(ids)}")
    for item in items:
        if type(item) is not int or not 0 <= item < vocab_size:
            raise RequestError(f"{name}: expected token ids in 0..{vocab_size - 1}, got {show(item)}")
    return items


def _prompt(prompt: object) -> str | list[int]:
    ids = prompt if isinstance(prompt, str) else _items(prompt)
    if not ids:
        raise RequestError(f"prompt: expected a text or token ids, not empty, got {show(prompt)}")
    return ids


def _items(values: object) -> list[Any] | None:
    """The elements as plain Python values, or None where this is no list of any kind."""
    values = plain(values)
    if not isinstance(values, Sequence) or isinstance(values, str | bytes | bytearray | memoryview):
        return None
    return [plain(value) for value in values]
