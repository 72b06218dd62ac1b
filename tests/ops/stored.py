"""Random blocks of every format of few bits, as they lie in a GGUF file, and what the gguf package makes of them."""

from __future__ import annotations

import gguf
import numpy as np
import torch
from gguf.quants import dequantize

from fdpp.formats import PACKED

FORMATS = list(PACKED)

#: Where a block holds numbers of 16 bits, by format; every other byte may have any value.
_HALVES = {
    "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q8_0": (0,), "q2_k": (80, 82), "q3_k": (108,),
    "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,), "iq4_nl": (0,), "iq4_xs": (0,), "mxfp4": (),
    "int4_32": (), "int4_128": (), "int8_128": (),
}  # fmt: skip


def random_blocks(name: str, rows: int, columns: int, seed: int = 0, magnitude: float | None = None) -> torch.Tensor:
    """uint8 ``[rows, bytes of a row]``: any bits, with finite scales of both signs.

    ``magnitude``: roughly that of the values; None for scales of many magnitudes.
    """
    rng = np.random.default_rng(seed + rows + columns)
    of = PACKED[name]
    blocks = rng.integers(0, 256, (rows, columns // of.block, of.file_bytes), dtype=np.uint8)
    for start in _HALVES[name]:
        scales = rng.normal(size=blocks.shape[:2])
        if magnitude is None:
            scales *= np.exp2(rng.integers(-20, 4, blocks.shape[:2]))
        else:
            scales *= magnitude / (2**of.bits * (32 if of.sub_scales else 1))
        blocks[..., start : start + 2] = scales.astype("<f2")[..., None].view(np.uint8).reshape(*blocks.shape[:2], 2)
    if name.startswith("int"):
        scales = (rng.normal(size=blocks.shape[:2]) * (0.02 if magnitude is None else magnitude)).astype("<f4")
        blocks[..., :4] = scales[..., None].view(np.uint8).reshape(*blocks.shape[:2], 4)
        blocks[..., 4] = blocks[..., 4] % 16 if name.startswith("int4") else blocks[..., 4]
    if name == "mxfp4":
        blocks[..., 0] = rng.integers(0, 253, blocks.shape[:2])
        if columns > 32:  # products with the largest leave float32
            blocks[..., 0] = rng.integers(100, 130, blocks.shape[:2])
    return torch.from_numpy(blocks.reshape(rows, -1))


def values(name: str, raw: torch.Tensor) -> torch.Tensor:
    """float32 ``[rows, columns]``."""
    if name.startswith("int"):
        return _integers(PACKED[name].file_bytes, name.startswith("int4"), raw)
    with np.errstate(over="ignore"):
        return torch.from_numpy(dequantize(raw.numpy(), gguf.GGMLQuantizationType[name.upper()]))


def _integers(block_bytes: int, is_int4: bool, raw: torch.Tensor) -> torch.Tensor:
    """As csrc/common/weight_format.h defines them."""
    blocks = raw.numpy().reshape(len(raw), -1, block_bytes)
    scales = np.ascontiguousarray(blocks[..., :4]).view("<f4")
    if is_int4:
        bytes_of_groups = blocks[..., 5:].reshape(*blocks.shape[:2], -1, 16)
        codes = np.concatenate([bytes_of_groups & 15, bytes_of_groups >> 4], axis=-1).reshape(*blocks.shape[:2], -1)
        codes = codes.astype(np.float32) - blocks[..., 4:5]
    else:
        codes = np.ascontiguousarray(blocks[..., 4:]).view(np.int8).astype(np.float32)
    return torch.from_numpy((scales * codes).reshape(len(raw), -1))
