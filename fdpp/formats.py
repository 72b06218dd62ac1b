"""Weights of few bits: the formats that linear layers multiply with as they are stored, and how they are packed.

A packed weight is a one-dimensional uint8 tensor; csrc/common/weight_format.h says where its bits lie. Its *layout*
says what it holds: formats with their numbers of rows, as in ``"q4_k:4096,q6_k:1024"``, each from a new panel of 16 on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fdpp import library
from fdpp._host import WEIGHT_FORMATS
from fdpp.dtypes import torch_dtype


@dataclass(frozen=True)
class PackedFormat:
    """What csrc/common/weight_format.h says of a format.

    Attributes:
        file_bytes: of a block as it is stored, which holds :attr:`block` elements of a row.
        bits: of a code.
        zero: the code that stands for 0, where the codebook does not say what codes stand for.
        codebook: 16 values, or none.
        scale_dtype: of scales and minimums.
        has_min: whether there are minimums.
        has_zero: whether each row has the code that stands for 0, instead of ``zero``.
        groups: of 32 elements, that share a scale.
        sub_scales: factors of the scale that a group has of its own: 0, 1, or 2 for its halves.
    """

    file_bytes: int
    bits: int
    zero: int
    codebook: tuple[int, ...]
    scale_dtype: torch.dtype
    has_min: bool
    has_zero: bool
    groups: int
    sub_scales: int

    @property
    def block(self) -> int:
        return 32 * self.groups


def _described(scale_dtype: str, **fields: Any) -> PackedFormat:
    return PackedFormat(scale_dtype=torch_dtype(scale_dtype), **fields)


PACKED = {name: _described(**fields) for name, fields in WEIGHT_FORMATS.items()}


@dataclass(frozen=True)
class StoredRows:
    """Rows of one format as they lie in a file, or in memory as they would lie in one.

    Attributes:
        format: one of :data:`PACKED`.
        addresses: int64 ``[rows]``: where each begins in memory, which must stay as long as it is packed.
        memory: what keeps it, where no file does.
    """

    format: str
    addresses: Tensor
    memory: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.addresses)


def merged(parts: Sequence[StoredRows]) -> list[StoredRows]:
    """The parts, those side by side of one format as one."""
    found: list[StoredRows] = []
    for part in parts:
        if found and found[-1].format == part.format:
            before = found.pop()
            addresses = torch.cat([before.addresses, part.addresses])
            part = StoredRows(part.format, addresses, before.memory + part.memory)
        found.append(part)
    return found


def layout_of(runs: Iterable[tuple[str, int]]) -> str:
    """The layout of a weight of these formats with their numbers of rows, those side by side of one format as one."""
    by_format = itertools.groupby(runs, key=lambda run: run[0])
    return ",".join(f"{format}:{sum(rows for _, rows in same)}" for format, same in by_format)


def layout_rows(layout: str) -> int:
    """The rows of a weight with this layout; 0 where it is none, of which the operators tell."""
    counts = [part.partition(":")[2] for part in layout.split(",")]
    return sum(map(int, counts)) if all(count.isdecimal() for count in counts) else 0


def packed_bytes(layout: str, columns: int) -> int:
    """The bytes of a packed weight.

    Raises:
        ValueError: it is no layout, or the columns are no whole number of a format's blocks.
    """
    return library.load().packed_bytes(layout, columns)


def pack_into(out: Tensor, parts: Sequence[StoredRows], columns: int) -> bool:
    """Pack :func:`merged` rows, one part after the other. **Mutates** ``out``, uint8 of :func:`packed_bytes`.

    Returns:
        whether all scales are finite.
    """
    start, damaged = out.data_ptr(), 0
    for part in parts:
        rows = part.addresses.contiguous()
        damaged += library.load().pack_weight(part.format, rows.data_ptr(), len(part), columns, start)
        start += packed_bytes(f"{part.format}:{len(part)}", columns)
    return damaged == 0


def pack(raw: Tensor, format: str) -> Tensor:
    """Pack a weight whose rows lie as in a GGUF file.

    Args:
        raw: uint8 ``[rows, bytes of a row]``, contiguous, on the CPU: blocks of the format.
        format: one of :data:`PACKED`.

    Returns:
        uint8, to be used with the layout ``f"{format}:{rows}"`` and ``blocks of a row * elements of a block`` columns.

    Raises:
        ValueError: an unknown format, a tensor of another shape or dtype, or scales that are not finite.
    """
    if format not in PACKED:
        raise ValueError(f"format must be one of {', '.join(PACKED)}; got {format!r:.80}")
    block_bytes = PACKED[format].file_bytes
    is_plain = raw.dtype == torch.uint8 and raw.dim() == 2 and raw.is_cpu and raw.is_contiguous()
    if not is_plain or raw.numel() == 0 or raw.shape[1] % block_bytes:
        raise ValueError(
            f"raw must be contiguous uint8 [rows, n * {block_bytes}] on the CPU for {format}; "
            f"got {raw.dtype} {list(raw.shape)} on {raw.device}"
        )
    rows, columns = raw.shape[0], raw.shape[1] // block_bytes * PACKED[format].block
    addresses = raw.data_ptr() + raw.shape[1] * torch.arange(rows, dtype=torch.int64, device="cpu")
    stored = StoredRows(format, addresses)
    packed = torch.empty(packed_bytes(f"{format}:{rows}", columns), dtype=torch.uint8, device="cpu")
    if not pack_into(packed, [stored], columns):
        raise ValueError(f"{format}: expected finite scales")
    return packed
