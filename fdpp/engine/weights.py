"""The weights of a decoder in the layout that the ops want: q, k, v merged, gate and up row by row, one dtype."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from fdpp import native
from fdpp.engine.checkpoint import Checkpoint
from fdpp.errors import CheckpointError

# Tensors that repeat what the config says, or that are read with it.
_DERIVED = ("rotary_emb.inv_freq", "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

Progress = Callable[[int, int, str], None]
"""Called with the number of tensors loaded, their number in all, and the name of the next one or the last one."""


class _Pickled:
    """Weights as one file of torch: pickle alone would write the block that they are cut from for each of them."""

    __slots__: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        file = io.BytesIO()
        torch.save(_plain(self), file)
        return _unpickled, (type(self), file.getvalue())

    def __deepcopy__(self, memo: dict[int, Any]) -> _Pickled:
        return type(self)(*(copy.deepcopy(getattr(self, name), memo) for name in self.__slots__))


def _plain(weights: object) -> object:
    if isinstance(weights, list):
        return [_plain(entry) for entry in weights]
    return (
        {name: _plain(getattr(weights, name)) for name in weights.__slots__}
        if isinstance(weights, _Pickled)
        else weights
    )


def _unpickled(kind: type[_Pickled], file: bytes) -> _Pickled:
    weights = torch.load(io.BytesIO(file), weights_only=True)
    if "layers" in weights:
        weights["layers"] = [LayerWeights(**layer) for layer in weights["layers"]]
    return kind(**weights)


@dataclass(slots=True)
class LayerWeights(_Pickled):
    """One layer. Linear weights are ``[out, in]``; H hidden, F intermediate, D head length."""

    input_norm: Tensor  # [H]
    qkv: Tensor  # [(Hq + 2 Hkv) D, H]
    qkv_bias: Tensor | None
    q_norm: Tensor | None  # [D]
    k_norm: Tensor | None  # [D]
    o: Tensor  # [H, Hq D]
    o_bias: Tensor | None
    post_norm: Tensor  # [H]
    gate_up: Tensor  # [2 F, H], gate and up in turn: linear(gated=True)
    gate_up_bias: Tensor | None
    down: Tensor  # [H, F]
    down_bias: Tensor | None


@dataclass(slots=True)
class DecoderWeights(_Pickled):
    """All of a decoder. With tied embeddings ``lm_head`` is ``embedding``."""

    embedding: Tensor  # [V, H]
    layers: list[LayerWeights]
    final_norm: Tensor  # [H]
    lm_head: Tensor  # [V, H]
    rope_divisors: Tensor | None  # float32 [D / 2]

    def tensors(self) -> Iterator[Tensor]:
        """Each tensor that a decode step reads whole; not the input embedding, of which it reads a row."""
        for layer in self.layers:
            yield from (tensor for name in layer.__slots__ if (tensor := getattr(layer, name)) is not None)
        yield self.final_norm
        yield self.lm_head


def load_weights(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, progress: Progress | None = None
) -> DecoderWeights:
    """Read, convert and merge the weights, one tensor at a time.

    Raises:
        CheckpointError: a tensor is missing, superfluous, of the wrong shape or not finite in ``dtype``, or all of them
            together exceed the memory. Shapes are checked before anything is allocated.
    """
    plan = _plan(checkpoint)
    _check_shapes(checkpoint, plan)
    _check_memory(plan, dtype, device)
    loaded: dict[str, Tensor] = {}
    room = _room(plan, dtype) if device.type == "cpu" else None
    total, done = sum(len(entry.parts) for entry in plan), 0
    for entry in plan:
        merged = torch.empty(entry.shape, dtype=dtype, device="cpu") if room is None else next(room)
        for (name, _), rows in zip(entry.parts, entry.rows(), strict=True):
            if progress is not None:
                progress(done, total, name)
            checkpoint.read_into(name, merged[rows])
            done += 1
        if not _is_finite(merged):
            names = ", ".join(name for name, _ in entry.parts)
            raise CheckpointError(f"{names}: not all values are finite in {str(dtype).removeprefix('torch.')}")
        loaded[entry.key] = merged.to(device)
    if progress is not None:
        progress(total, total, plan[-1].parts[-1][0])
    return _assemble(loaded, checkpoint)


def _room(plan: list[_Entry], dtype: torch.dtype) -> Iterator[Tensor]:
    """Uninitialised host tensors for the entries in turn, cut from one block in huge pages.

    A decode step walks through all weights: with small pages it would miss the TLB every 4 KiB.
    """
    align = 64 // dtype.itemsize  # a cache line
    sizes = [-(-prod(entry.shape) // align) * align for entry in plan]
    block = torch.empty(sum(sizes), dtype=dtype, device="cpu")
    native.load().advise_huge_pages(block.data_ptr(), block.nbytes)
    for entry, piece in zip(plan, block.split(sizes), strict=True):
        yield piece[: prod(entry.shape)].view(entry.shape)


@dataclass(frozen=True)
class _Entry:
    """A weight of the decoder and the tensors of the checkpoint that make it up: one after the other, or row by row."""

    key: str
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    in_turn: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(shape[0] for _, shape in self.parts), *self.parts[0][1][1:])

    def rows(self) -> Iterator[slice]:
        """Where each part lies."""
        start = 0
        for number, (_, shape) in enumerate(self.parts):
            yield slice(number, None, len(self.parts)) if self.in_turn else slice(start, start + shape[0])
            start += shape[0]


def _plan(checkpoint: Checkpoint) -> list[_Entry]:
    config, names = checkpoint.config, checkpoint.weight_names
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    plan: list[_Entry] = []

    def vector(key: str, name: str, size: int) -> None:
        plan.append(_Entry(key, ((f"{name}.weight", (size,)),)))

    def linear(
        key: str, parts: tuple[str, ...], rows: tuple[int, ...], columns: int, bias: bool = False, in_turn: bool = False
    ) -> None:
        pairs = list(zip(parts, rows, strict=True))
        plan.append(_Entry(key, tuple((f"{name}.weight", (n, columns)) for name, n in pairs), in_turn))
        if bias:
            plan.append(_Entry(f"{key}_bias", tuple((f"{name}.bias", (n,)) for name, n in pairs), in_turn))

    embedding, lm_head = _embedding_names(checkpoint)
    linear("embedding", (embedding,), (vocab,), hidden)
    for i in range(config.num_layers):
        at = f"{i}."
        vector(at + "input_norm", names.input_norm.format(i=i), hidden)
        qkv = tuple(part.format(i=i) for part in names.qkv)
        linear(at + "qkv", qkv, config.qkv_rows, hidden, config.qkv_bias)
        if config.qk_norm:
            vector(at + "q_norm", names.q_norm.format(i=i), config.head_dim)
            vector(at + "k_norm", names.k_norm.format(i=i), config.head_dim)
        linear(at + "o", (names.o.format(i=i),), (hidden,), config.qkv_rows[0], config.o_bias)
        vector(at + "post_norm", names.post_norm.format(i=i), hidden)
        gate_up = tuple(part.format(i=i) for part in names.gate_up)
        linear(at + "gate_up", gate_up, (inner, inner), hidden, config.mlp_bias, in_turn=True)
        linear(at + "down", (names.down.format(i=i),), (hidden,), inner, config.mlp_bias)
    vector("final_norm", names.final_norm, hidden)
    if lm_head is not None:
        linear("lm_head", (lm_head,), (vocab,), hidden)
    return plan


def _embedding_names(checkpoint: Checkpoint) -> tuple[str, str | None]:
    """The stored names of the embedding and of the head, None where the embedding serves as the head.

    The file counts, as in transformers, not the config's word: with tied embeddings it may hold either of the two, and
    where it holds both, the head has been trained on its own.
    """
    names = checkpoint.weight_names
    has_embedding, has_head = (f"{name}.weight" in checkpoint.shapes for name in (names.embedding, names.lm_head))
    if not checkpoint.config.tied_embeddings or (has_embedding and has_head):
        return names.embedding, names.lm_head
    return names.lm_head if has_head else names.embedding, None


def _assemble(loaded: dict[str, Tensor], checkpoint: Checkpoint) -> DecoderWeights:
    def layer(i: int) -> LayerWeights:
        parts: dict[str, Any] = {name: loaded.get(f"{i}.{name}") for name in LayerWeights.__slots__}
        return LayerWeights(**parts)

    layers = [layer(i) for i in range(checkpoint.config.num_layers)]
    embedding = loaded["embedding"]
    return DecoderWeights(
        embedding, layers, loaded["final_norm"], loaded.get("lm_head", embedding), checkpoint.rope_divisors()
    )


def _check_shapes(checkpoint: Checkpoint, plan: list[_Entry]) -> None:
    wanted = {name: shape for entry in plan for name, shape in entry.parts}
    for name, shape in wanted.items():
        if name not in checkpoint.shapes:
            raise CheckpointError(f"tensor {name} is missing")
        if checkpoint.shapes[name] != shape:
            raise CheckpointError(f"tensor {name}: expected shape {shape}, got {checkpoint.shapes[name]}")
    # A weight that the decoder has no place for means that the model is not what its config says.
    surplus = [name for name in checkpoint.shapes if name not in wanted and not name.endswith(_DERIVED)]
    if surplus:
        example = f"{surplus[0]!r:.80}"
        raise CheckpointError(f"{len(surplus)} tensors that this architecture does not have, such as {example}")


def _check_memory(plan: list[_Entry], dtype: torch.dtype, device: torch.device) -> None:
    needed = sum(prod(entry.shape) for entry in plan) * dtype.itemsize
    if needed > (available := memory_bytes(device)):
        raise CheckpointError(f"the weights need {needed / 2**30:.1f} GiB; {device} has {available / 2**30:.1f} GiB")


def memory_bytes(device: torch.device) -> int:
    """The memory of the device in bytes, used or not."""
    if device.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return torch.get_device_module(device).mem_get_info(device)[1]


def _is_finite(tensor: Tensor) -> bool:
    """One pass without a temporary: NaN and infinities all reach the extremes."""
    low, high = tensor.aminmax()
    return bool(low.isfinite()) and bool(high.isfinite())
