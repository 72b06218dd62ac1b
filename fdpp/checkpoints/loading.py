"""Loading: from the tensors of a checkpoint to the weights that a model has declared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from fdpp._host import advise_huge_pages
from fdpp.checkpoints.base import Checkpoint
from fdpp.errors import CheckpointError
from fdpp.memory import memory_bytes
from fdpp.weights import Source, Weight

# Tensors that repeat what the config says, or that are read with it.
_DERIVED = (
    "rotary_emb.inv_freq",
    "rotary_pos_emb.inv_freq",
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
)

Progress = Callable[[int, int, str], None]
"""Called with the number of tensors loaded, their number in all, and the name of the next one or the last one."""


def load_weights(
    checkpoint: Checkpoint,
    weights: Sequence[Weight],
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
) -> None:
    """Read, convert and merge the weights, one tensor at a time. **Mutates** the weights, which get their values.

    Raises:
        CheckpointError: a tensor is missing, superfluous, of the wrong shape or not finite in ``dtype``, or all of them
            together exceed the memory. Shapes are checked before anything is allocated.
    """
    _check_shapes(checkpoint, weights)
    _check_memory(weights, dtype, device)
    sources = [source.name for weight in weights for source in weight.sources]
    done = 0
    for weight, values in zip(weights, _room(weights, dtype, device), strict=True):
        for source, rows in weight.rows():
            if progress is not None:
                progress(done, len(sources), source.name)
            read_source(checkpoint, source, weight.offset, values[rows])
            done += 1
        if not _is_finite(values):
            names = ", ".join(source.name for source in weight.sources)
            raise CheckpointError(f"{names}: not all values are finite in {str(values.dtype).removeprefix('torch.')}")
        weight.tensor = values.to(device)
    if progress is not None:
        progress(done, len(sources), sources[-1])


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
    align = 64 // dtype.itemsize  # a cache line
    cut = [weight for weight in weights if device.type == "cpu" and weight.dtype is None]
    sizes = [-(-prod(weight.shape) // align) * align for weight in cut]
    block = torch.empty(sum(sizes), dtype=dtype, device="cpu")
    advise_huge_pages(block.data_ptr(), block.nbytes)
    pieces = dict(zip(map(id, cut), block.split(sizes), strict=True)) if cut else {}
    for weight in weights:
        if (piece := pieces.get(id(weight))) is not None:
            yield piece[: prod(weight.shape)].view(weight.shape)
        else:
            yield torch.empty(weight.shape, dtype=weight.dtype or dtype, device="cpu")


def _check_shapes(checkpoint: Checkpoint, weights: Sequence[Weight]) -> None:
    wanted = {source.name: source.stored_shape for weight in weights for source in weight.sources}
    for name, shape in wanted.items():
        if name not in checkpoint.shapes:
            raise CheckpointError(f"tensor {name} is missing")
        if checkpoint.shapes[name] != shape:
            raise CheckpointError(f"tensor {name}: expected shape {shape}, got {checkpoint.shapes[name]}")
    # A weight that the model has no place for means that the model is not what its config says.
    surplus = [name for name in checkpoint.shapes if name not in wanted and not name.endswith(_DERIVED)]
    if surplus:
        example = f"{surplus[0]!r:.80}"
        raise CheckpointError(f"{len(surplus)} tensors that this architecture does not have, such as {example}")


def _check_memory(weights: Sequence[Weight], dtype: torch.dtype, device: torch.device) -> None:
    needed = sum(prod(weight.shape) * (weight.dtype or dtype).itemsize for weight in weights)
    if needed > (available := memory_bytes(device)):
        raise CheckpointError(f"the weights need {needed / 2**30:.1f} GiB; {device} has {available / 2**30:.1f} GiB")


def _is_finite(tensor: Tensor) -> bool:
    """One pass without a temporary: NaN and infinities all reach the extremes."""
    low, high = tensor.aminmax()
    return bool(low.isfinite()) and bool(high.isfinite())
