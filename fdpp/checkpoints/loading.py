"""Loading: from the tensors of a checkpoint to the weights that a model has declared."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from math import prod

import torch
from torch import Tensor

from fdpp._host import advise_huge_pages
from fdpp.checkpoints.base import Checkpoint
from fdpp.errors import CheckpointError, RequestError, show
from fdpp.formats import PACKED, StoredRows, layout_of, merged, pack_into, packed_bytes
from fdpp.memory import memory_bytes
from fdpp.weights import Packing, Source, Weight

# Tensors that repeat what the config says, or that are read with it.
_DERIVED = (
    "rotary_emb.inv_freq",
    "rotary_pos_emb.inv_freq",
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
)

_CACHE_LINE = 64


class Keep(IntEnum):
    """Whether matrices of few bits stay as they are stored."""

    NOTHING = 0
    WHAT_CAN_BE = 1  # and a warning where that is nothing
    ALL = 2  # or an error


Progress = Callable[[int, int, str], None]
"""Called with the number of tensors loaded, their number in all, and the name of the next one or the last one."""


def load_weights(
    checkpoint: Checkpoint,
    weights: Sequence[Weight],
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
    stored: int = Keep.NOTHING,
) -> None:
    """Read, convert and merge the weights, one tensor at a time. **Mutates** the weights, which get their values.

    Args:
        stored: a :class:`Keep`; unless it is ``NOTHING``, matrices of few bits are packed as they are stored, on the
            CPU. The values of others are converted.

    Raises:
        CheckpointError: a tensor is missing, superfluous, of the wrong shape or not finite in ``dtype``, or all of them
            together exceed the memory. Shapes are checked before anything is allocated.
    """
    if stored and checkpoint.only_values is not None:
        _say_unpacked(checkpoint.only_values, dtype, stored)
    _check_shapes(checkpoint, weights)
    for weight in weights:
        weight.packing = _packing(checkpoint, weight, dtype) if stored else None
    _check_memory(weights, dtype, device)
    sources = [source.name for weight in weights for source in weight.sources]
    done = 0
    for weight, values in zip(weights, _room(weights, dtype, device), strict=True):
        if progress is not None:
            progress(done, len(sources), weight.sources[0].name)
        if weight.packing is not None:
            is_finite = pack_into(values, _stored_parts(checkpoint, weight, weight.packing), weight.shape[1])
        else:
            for number, (source, rows) in enumerate(weight.rows()):
                if progress is not None and number:
                    progress(done + number, len(sources), source.name)
                read_source(checkpoint, source, weight.offset, values[rows])
            is_finite = _is_finite(values)
        done += len(weight.sources)
        for source in weight.sources:
            checkpoint.release(source.name)
        if not is_finite:
            names = ", ".join(source.name for source in weight.sources)
            as_what = weight.packing.layout if weight.packing else str(values.dtype).removeprefix("torch.")
            raise CheckpointError(f"{names}: not all values are finite in {as_what}")
        weight.tensor = values.to(device)
    if progress is not None:
        progress(done, len(sources), sources[-1])


def _say_unpacked(kind: str, dtype: torch.dtype, stored: int) -> None:
    if stored == Keep.ALL:
        raise CheckpointError(f"weights: expected 'dequantised' with {kind}, which has no packed form, got 'stored'")
    name = str(dtype).removeprefix("torch.")
    warnings.warn(
        f"{kind} has no packed form: weights are unpacked to {name} (weights='dequantised' asks for that)", stacklevel=4
    )


def keeps_stored(weights: str | None, device: torch.device, dtype: torch.dtype) -> Keep:
    """What ``LLM(weights=...)`` stands for on a device, whose kernels for packed weights may not take every dtype.

    Raises:
        RequestError: it is none of the choices, or one that the device does not have.
    """
    if weights not in (None, "stored", "dequantised"):
        raise RequestError(f"weights: expected 'stored' or 'dequantised', got {show(weights)}")
    has_kernels = device.type == "cpu" or dtype != torch.float32
    if weights == "stored" and not has_kernels:
        raise RequestError(
            "weights: expected 'dequantised' with float32 on a GPU, whose kernels have none, got 'stored'"
        )
    if weights == "dequantised" or not has_kernels:
        return Keep.NOTHING
    return Keep.ALL if weights == "stored" else Keep.WHAT_CAN_BE


def _packing(checkpoint: Checkpoint, weight: Weight, dtype: torch.dtype) -> Packing | None:
    """How a matrix is packed; None where a tensor of it cannot be."""
    if not weight.is_matrix or weight.offset:
        return None
    formats = [checkpoint.stored_format(source.name) for source in weight.sources]
    known = [name for name in formats if name is not None and weight.shape[1] % PACKED[name].block == 0]
    if len(known) < len(formats):
        return None
    orders = [checkpoint.column_order(source.name) for source in weight.sources]
    # One order of the activations serves all rows. Where the sources want several, their values are unpacked.
    if not all(_is_same(order, orders[0]) for order in orders):
        return None
    rows = [source.shape[0] for source in weight.sources]
    one_format = weight.interleaved and len(set(known)) == 1
    return Packing(layout_of(zip(known, rows, strict=True)), dtype, one_format, orders[0])


def _is_same(order: Tensor | None, other: Tensor | None) -> bool:
    return order is other if order is None or other is None else torch.equal(order, other)


def _stored_parts(checkpoint: Checkpoint, weight: Weight, packing: Packing) -> list[StoredRows]:
    """The rows of a matrix in the order in which its reader wants them."""
    whole = {name: checkpoint.stored_rows(name) for name in {source.name: None for source in weight.sources}}
    parts = []
    for source in weight.sources:
        rows = whole[source.name]
        taken = rows.addresses if source.rows is None else source.rows.of(rows.addresses)
        parts.append(StoredRows(rows.format, taken, rows.memory))
    if packing.interleaved:
        addresses = torch.stack([part.addresses for part in parts], dim=1).flatten()
        parts = [StoredRows(parts[0].format, addresses, sum((part.memory for part in parts), start=()))]
    parts = merged(parts)
    assert layout_of((part.format, len(part)) for part in parts) == packing.layout, weight.sources[0].name
    return parts


def read_source(checkpoint: Checkpoint, source: Source, offset: float, out: Tensor) -> None:
    """Write what is taken of a tensor, plus ``offset``, into ``out``; a sum is rounded once."""
    if source.rows is None and not offset:
        return checkpoint.read_into(source.name, out)
    stored = torch.empty(source.stored_shape, dtype=torch.float32 if offset else out.dtype, device="cpu")
    checkpoint.read_into(source.name, stored)
    taken = stored if source.rows is None else source.rows.of(stored)
    out.copy_(taken + offset if offset else taken)


def _room(weights: Sequence[Weight], dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
    """Uninitialised host tensors for the weights in turn. What stays on the host is cut from one block in huge pages.

    A decode step walks through all weights: with small pages it would miss the TLB every 4 KiB.
    """
    cut = [weight for weight in weights if device.type == "cpu" and weight.dtype is None]
    sizes = [-(-_bytes(weight, dtype) // _CACHE_LINE) * _CACHE_LINE for weight in cut]
    block = torch.empty(sum(sizes), dtype=torch.uint8, device="cpu")
    advise_huge_pages(block.data_ptr(), block.nbytes)
    pieces = dict(zip(map(id, cut), block.split(sizes), strict=True)) if cut else {}
    for weight in weights:
        if (piece := pieces.get(id(weight))) is None:
            if weight.packing is not None:
                yield torch.empty(_bytes(weight, dtype), dtype=torch.uint8, device="cpu")
            else:
                yield torch.empty(weight.shape, dtype=weight.dtype or dtype, device="cpu")
        else:
            piece = piece[: _bytes(weight, dtype)]
            yield piece if weight.packing else piece.view(dtype).view(weight.shape)


def _bytes(weight: Weight, dtype: torch.dtype) -> int:
    if weight.packing is not None:
        return packed_bytes(weight.packing.layout, weight.shape[1])
    return prod(weight.shape) * (weight.dtype or dtype).itemsize


def _check_shapes(checkpoint: Checkpoint, weights: Sequence[Weight]) -> None:
    wanted = {source.name: source.stored_shape for weight in weights for source in weight.sources}
    for name, shape in wanted.items():
        if name not in checkpoint.shapes:
            raise CheckpointError(f"tensor {name} is missing")
        if checkpoint.shapes[name] != shape:
            raise CheckpointError(f"tensor {name}: expected shape {shape}, got {checkpoint.shapes[name]}")
    # A weight that the model has no place for means that the model is not what its config says.
    surplus = [name for name in checkpoint.shapes if name not in wanted and not name.endswith(_DERIVED)]
    surplus = [name for name in surplus if not checkpoint.says_nothing(name)]
    if surplus:
        example = f"{surplus[0]!r:.80}"
        raise CheckpointError(f"{len(surplus)} tensors that this architecture does not have, such as {example}")


def _check_memory(weights: Sequence[Weight], dtype: torch.dtype, device: torch.device) -> None:
    needed = sum(_bytes(weight, dtype) for weight in weights)
    if needed > (available := memory_bytes(device)):
        raise CheckpointError(f"the weights need {needed / 2**30:.1f} GiB; {device} has {available / 2**30:.1f} GiB")


def _is_finite(tensor: Tensor) -> bool:
    """One pass without a temporary: NaN and infinities all reach the extremes."""
    low, high = tensor.aminmax()
    return bool(low.isfinite()) and bool(high.isfinite())
