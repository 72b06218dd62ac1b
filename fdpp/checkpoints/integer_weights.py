"""Matrices of 4 or 8 bits as Hugging Face directories store them: their values, and the blocks that fdpp packs.

N rows, K columns, G groups of columns; a group of a row shares a scale, and the code that stands for 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fdpp.formats import PACKED, StoredRows

_BLOCK_ELEMENTS = 1 << 21  # converted at a time: 8 MiB of float32, which stays in the caches
_SIGN = 0x80  # codes of 8 bits are stored without a sign, with this as their 0


def unpack(words: Tensor, bits: int) -> Tensor:
    """Codes of 4 or 8 bits in the words of a row, the lowest bits first: uint8 ``[rows, words * 32 / bits]``."""
    codes = words.contiguous().view(torch.uint8)
    if bits == 8:
        return codes
    wide = codes.to(torch.int16)  # a byte's halves move into two bytes: much faster than to interleave tensors
    return wide.bitwise_or_(wide << 4).bitwise_and_(0x0F0F).view(torch.uint8)


@dataclass(frozen=True)
class IntegerMatrix:
    """Element (n, k) is ``scales[n, g] * (codes[n, k] - zeros[n, g])`` with ``g = groups[k]``.

    Attributes:
        codes: uint8 ``[N, K]``.
        scales: of a floating dtype ``[N, G]``.
        zeros: uint8 ``[N, G]``.
        groups: int64 ``[K]``.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    groups: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    def read_into(self, out: Tensor) -> None:
        """Write the values into ``out``, rounded to float32 and to its dtype."""
        step = max(1, _BLOCK_ELEMENTS // len(self.groups))
        for start in range(0, len(out), step):
            rows = slice(start, start + step)
            zeros, scales = (each[rows].index_select(1, self.groups).float() for each in (self.zeros, self.scales))
            out[rows].copy_(self.codes[rows].float().sub_(zeros).mul_(scales))

    def stored_rows(self, format: str, order: Tensor | None) -> StoredRows:
        """The blocks of a format that the groups are whole blocks of, once the columns are in ``order``."""
        codes, groups = self.codes, self.groups
        if order is not None:
            codes, groups = codes.index_select(1, order), groups[order]
        of = PACKED[format]
        rows, own = len(codes), groups[:: of.block]
        blocks = torch.empty((rows, len(own), of.file_bytes), dtype=torch.uint8, device="cpu")
        scales = self.scales.index_select(1, own).float().contiguous()
        blocks[..., :4] = scales.view(torch.uint8).view(rows, len(own), 4)
        if of.bits == 8:
            blocks[..., 4:] = (codes ^ _SIGN).view(rows, len(own), of.block)
        else:
            blocks[..., 4] = self.zeros.index_select(1, own)
            halves = codes.view(rows, len(own), of.groups, 2, 16)
            blocks[..., 5:] = (halves[..., 0, :] | halves[..., 1, :] << 4).flatten(2)
        addresses = blocks.data_ptr() + blocks.stride(0) * torch.arange(rows, dtype=torch.int64, device="cpu")
        return StoredRows(format, addresses, (blocks,))


def format_of(bits: int, columns: int, group_size: int) -> str | None:
    """The format that holds such a matrix as it is, whose scale is repeated where a group has several of its blocks."""
    formats = ("int4_128", "int4_32") if bits == 4 else ("int8_128",)
    return next(
        (name for name in formats if columns % PACKED[name].block == group_size % PACKED[name].block == 0), None
    )


def column_order(groups: Tensor, block: int) -> tuple[bool, Tensor | None]:
    """Whether columns can be put so that each ``block`` of them is of one group, and in what order.

    Args:
        groups: int64 ``[K]``, the group of each column.

    Returns:
        and None as the order where they stand so already.
    """
    if _is_uniform(groups, block):
        return True, None
    order = groups.argsort(stable=True)
    return _is_uniform(groups[order], block), order


def _is_uniform(groups: Tensor, block: int) -> bool:
    blocks = groups.view(-1, block)
    return bool((blocks == blocks[:, :1]).all())
