"""Key/value caches, allocated once for a batch: contiguous, or in pages that a block table names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from fdpp.engine.layers import Attention
from fdpp.errors import RequestError
from fdpp.memory import memory_bytes

_NO_PAGE = -1
_CAPACITY_STEP = 256  # tokens


@dataclass(frozen=True)
class KVCache:
    """Per layer a tensor of keys and one of values, each a storage of its own (custom ops mutate them separately).

    Contiguous: ``[B, S, Hkv, D]``. Paged: ``[blocks, page, Hkv, D]`` with ``block_table`` int32 ``[B, max_pages]``.

    ``rereferences``, int64 ``[Hq]``, counts how often a softmax reference over these keys had to move.
    """

    keys: list[Tensor]
    values: list[Tensor]
    rereferences: Tensor
    block_table: Tensor | None = None

    @property
    def capacity(self) -> int:
        """The most tokens of a sequence."""
        slots = self.keys[0].shape[1]
        return slots if self.block_table is None else slots * self.block_table.shape[1]

    @property
    def rows(self) -> int:
        """The number of sequences."""
        return len(self.keys[0] if self.block_table is None else self.block_table)

    def part(self, rows: slice, capacity: int | None = None) -> KVCache:
        """The cache of some sequences of the batch, of at most ``capacity`` tokens each, which shares the memory."""
        slots = capacity if capacity is not None and capacity < self.capacity else self.capacity
        if self.block_table is not None:
            return replace(self, block_table=self.block_table[rows, : -(-slots // self.keys[0].shape[1])])
        keys, values = ([tensor[rows, :slots] for tensor in tensors] for tensors in (self.keys, self.values))
        return replace(self, keys=keys, values=values)

    def row(self, index: int) -> KVCache:
        """The cache of one sequence of the batch, as a batch of one."""
        return self.part(slice(index, index + 1))

    def of_row(self, cached: Tensor, index: int) -> Tensor:
        """Of the keys or values of a layer, what :meth:`row` has of them."""
        return cached if self.block_table is not None else cached[index : index + 1]

    def pages_of(self, rows: Tensor) -> Tensor:
        """The block table int32 ``[T, pages]`` of tokens of these rows; a contiguous cache has a page for each row."""
        return rows[:, None].int() if self.block_table is None else self.block_table[rows]

    def copy(self, source: int, target: int, length: int) -> None:
        """**Mutates** the cache: gives sequence ``target`` the first ``length`` positions of sequence ``source``."""
        for cached in (*self.keys, *self.values):
            if self.block_table is None:
                cached[target, :length] = cached[source, :length]
            else:
                pages = -(-length // cached.shape[1])
                cached[self.block_table[target, :pages]] = cached[self.block_table[source, :pages]]

    def fill_from(self, other: KVCache, length: int) -> None:
        """**Mutates** the cache: gives its one sequence the first ``length`` positions of that of ``other``."""
        for target, source in zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True):
            if self.block_table is None:
                target[:, :length] = source[:, :length]
            else:  # one sequence has its pages in order
                pages = -(-length // target.shape[1])
                target[:pages] = source[:pages]

    def gather(self, cached: Tensor, start: int, stop: int) -> Tensor:
        """Positions ``start`` to ``stop`` in ``cached``, keys or values of one layer, of a cache of one sequence."""
        if self.block_table is None:
            return cached[:, start:stop]
        page = cached.shape[1]
        first = start // page
        blocks = self.block_table[0, first : -(-stop // page)]
        return cached[blocks].flatten(0, 1)[None, start - first * page : stop - first * page]


def allocate(
    attentions: Sequence[Attention],
    lengths: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    page_size: int | None = None,
) -> KVCache:
    """A cache for sequences of at most ``lengths`` tokens: contiguous, or paged when ``page_size`` is given.

    Args:
        attentions: those that append to it, layer by layer.

    Raises:
        RequestError: it would not fit into the memory of the device.
    """
    rereferences = torch.zeros(max(a.num_heads for a in attentions), dtype=torch.int64, device=device)
    if page_size is None:
        return KVCache(*_tensors(attentions, (len(lengths), max(lengths)), dtype, device), rereferences)
    pages = [-(-length // page_size) for length in lengths]
    table = torch.full((len(lengths), max(pages)), _NO_PAGE, dtype=torch.int32, device="cpu")
    first = 0
    for row, count in zip(table, pages, strict=True):
        row[:count] = torch.arange(first, first + count, dtype=torch.int32, device="cpu")
        first += count
    return KVCache(*_tensors(attentions, (first, page_size), dtype, device), rereferences, table.to(device))


class Pool:
    """The memory of caches that follow one another, and who has which of its pages.

    Args:
        attentions: those that append to a cache, layer by layer.
        page_size: tokens per page; None for contiguous caches.
    """

    def __init__(
        self, attentions: Sequence[Attention], dtype: torch.dtype, device: torch.device, page_size: int | None
    ) -> None:
        self._attentions, self._dtype, self._device, self._page_size = attentions, dtype, device, page_size
        self._cache: KVCache | None = None
        self._free: list[int] = []
        self._pages: dict[int, list[int]] = {}

    def fits(self, lengths: Sequence[int], rows: int) -> bool:
        """Whether the memory that is there serves sequences of those lengths, ``rows`` of them at a time."""
        if self._cache is None or self._cache.capacity < _rounded(max(lengths)):
            return False
        if self._cache.block_table is None or self._page_size is None:
            return self._cache.rows >= rows
        pages = sum(-(-length // self._page_size) for length in sorted(lengths)[-rows:])
        return self._cache.rows >= rows and len(self._cache.keys[0]) >= pages

    def begin(self, lengths: Sequence[int], rows: int) -> KVCache:
        """A cache for such sequences, with at least as many rows. The one before is over.

        Raises:
            RequestError: it would not fit into the memory of the device.
        """
        capacity = _rounded(max(lengths))
        if not self.fits(lengths, rows):
            self._cache = None  # its memory is free before new memory is taken
            # A little more than what is asked for serves the next request, too.
            padded = [length + capacity - max(lengths) for length in sorted(lengths)[-rows:]]
            self._cache = allocate(self._attentions, padded, self._dtype, self._device, self._page_size)
        assert self._cache is not None
        self._free, self._pages = list(range(len(self._cache.keys[0]) - 1, -1, -1)), {}
        self._cache.rereferences.zero_()
        return self._cache.part(slice(0, self._cache.rows), capacity)

    def seat(self, row: int, length: int) -> None:
        """Give a row the pages for that many tokens."""
        if self._page_size is not None:
            count = -(-length // self._page_size)
            self._pages[row] = [self._free.pop() for _ in range(count)]
            self._write(row)

    def leave(self, row: int) -> None:
        """Take a row's pages back."""
        self._free += reversed(self._pages.pop(row, []))

    def move(self, source: int, target: int, length: int) -> None:
        """Let row ``target``, which has no pages, have the ``length`` tokens that row ``source`` holds."""
        assert self._cache is not None
        if self._page_size is None:
            self._cache.copy(source, target, length)
        else:
            self._pages[target] = self._pages.pop(source)
            self._write(target)

    def _write(self, row: int) -> None:
        assert self._cache is not None and self._cache.block_table is not None
        pages = torch.tensor(self._pages[row], dtype=torch.int32, device="cpu")
        self._cache.block_table[row, : len(pages)] = pages.to(self._device, non_blocking=True)


def _rounded(length: int) -> int:
    return -(-length // _CAPACITY_STEP) * _CAPACITY_STEP


def _tensors(
    attentions: Sequence[Attention], slots: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> tuple[list[Tensor], list[Tensor]]:
    shapes = [(*slots, attention.num_kv_heads, attention.head_dim) for attention in attentions]
    needed = 2 * sum(map(prod, shapes)) * dtype.itemsize
    if needed > (available := memory_bytes(device)):
        raise RequestError(
            f"a key/value cache of {slots[0]} x {slots[1]} tokens needs {needed / 2**30:.1f} GiB; "
            f"{device} has {available / 2**30:.1f} GiB"
        )
    keys, values = ([torch.empty(shape, dtype=dtype, device=device) for shape in shapes] for _ in "kv")
    return keys, values
