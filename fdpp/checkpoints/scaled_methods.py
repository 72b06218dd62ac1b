"""Matrices of small floating-point numbers with scales: FP8 and NVFP4. fdpp's formats hold neither: they are unpacked.

N rows, K columns; a block of the matrix shares a scale.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fdpp.checkpoints.quantization_method import Expected, QuantizationMethod

_BLOCK_ELEMENTS = 1 << 21  # converted at a time: 8 MiB of float32, which stays in the caches
_SCALES, _FP8 = ("F32", "BF16", "F16"), ("F8_E4M3",)
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of the lower three bits; the fourth is the sign
_WHOLE = -1  # a block that is as long as the matrix


@dataclass(frozen=True)
class ScaledMatrix:
    """Element (n, k) is ``codes[n, k] * scales[n // rows, k // columns]`` in float32, of blocks (rows, columns).

    Attributes:
        codes: ``[N, K]`` of a floating dtype, or uint8 ``[N, K / 2]`` of E2M1, the lower half of a byte first.
        scales: float32 ``[ceil(N / rows), ceil(K / columns)]``.
        block: (rows, columns).
    """

    codes: Tensor
    scales: Tensor
    block: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns * (2 if self.codes.dtype == torch.uint8 else 1)

    def read_into(self, out: Tensor) -> None:
        """Write the values into ``out``, rounded to float32 and to its dtype."""
        rows, columns = (
            torch.arange(count, dtype=torch.int64, device="cpu") // size
            for count, size in zip(self.shape, self.block, strict=True)
        )
        step = max(1, _BLOCK_ELEMENTS // len(columns))
        for start in range(0, len(rows), step):
            own = slice(start, start + step)
            scales = self.scales.index_select(0, rows[own]).index_select(1, columns)
            out[own].copy_(_decoded(self.codes[own]).mul_(scales))


def _decoded(codes: Tensor) -> Tensor:
    """A new float32 tensor of what the codes stand for."""
    if codes.dtype != torch.uint8:
        return codes.float()
    values = torch.tensor([*_E2M1, *(-value for value in _E2M1)], dtype=torch.float32, device="cpu")
    halves = torch.stack([codes & 0xF, codes >> 4], dim=-1).flatten(1)
    return values.index_select(0, halves.flatten().long()).view(halves.shape)


class ScaledMethod(QuantizationMethod):
    """A scale for each block of the matrix.

    Args:
        block: rows and columns of one, -1 for all of them.
        others: the parts beside the codes.
    """

    def __init__(self, block: tuple[int, int], *others: str) -> None:
        super().__init__(*others)
        self._block = block

    @abstractmethod
    def scales(self, parts: Mapping[str, Tensor]) -> Tensor:
        """float32, one for each block, in their order."""

    def block(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns of a block."""
        height, width = self._block
        return rows if height == _WHOLE else height, columns if width == _WHOLE else width

    def blocks(self, rows: int, columns: int) -> tuple[int, int]:
        """How many there are one below the other and side by side."""
        height, width = self.block(rows, columns)
        return -(-rows // height), -(-columns // width)

    def matrix(self, module: str, parts: Mapping[str, Tensor]) -> ScaledMatrix:
        codes = parts[self.codes]
        rows, columns = self.size((codes.shape[0], codes.shape[1]))
        scales = self.scales(parts).reshape(self.blocks(rows, columns))
        return ScaledMatrix(codes, scales, self.block(rows, columns))


class Fp8(ScaledMethod):
    """E4M3, as "fp8" of transformers and "float-quantized" of compressed-tensors store it.

    Args:
        block: rows and columns of one, -1 for all of them.
        scale: the part of the scales, by which codes are multiplied.
    """

    codes, ignored, only_values = "weight", ("input_scale", "activation_scale"), "FP8"

    def __init__(self, block: tuple[int, int], scale: str) -> None:
        super().__init__(block, scale)
        self._scale = scale

    def size(self, codes: tuple[int, int]) -> tuple[int, int]:
        return codes

    def expected_of(self, module: str, rows: int, columns: int) -> Expected:
        is_number = self._block == (_WHOLE, _WHOLE)
        scales = (1,) if is_number else self.blocks(rows, columns)
        return {"weight": (_FP8, (rows, columns)), self._scale: (_SCALES, scales)}

    def scales(self, parts: Mapping[str, Tensor]) -> Tensor:
        return parts[self._scale].float()


class Nvfp4(ScaledMethod):
    """compressed-tensors' "nvfp4-pack-quantized": E2M1 with a scale in E4M3 for 16, which a number divides."""

    codes, ignored, only_values = "weight_packed", ("input_global_scale",), "NVFP4"

    def __init__(self) -> None:
        super().__init__((1, 16), "weight_scale", "weight_global_scale")

    def size(self, codes: tuple[int, int]) -> tuple[int, int]:
        return codes[0], codes[1] * 2

    def expected_of(self, module: str, rows: int, columns: int) -> Expected:
        return {
            "weight_packed": (("U8",), (rows, columns // 2)),
            "weight_scale": (_FP8, self.blocks(rows, columns)),
            "weight_global_scale": (("F32",), (1,)),
        }

    def scales(self, parts: Mapping[str, Tensor]) -> Tensor:
        return parts["weight_scale"].float() / parts["weight_global_scale"]
