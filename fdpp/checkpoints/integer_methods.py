"""How integer matrices lie in a Hugging Face directory: GPTQ, AWQ, "pack-quantized" and "int-quantized".

N rows, K columns, G groups of columns. The last two are those of compressed-tensors.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from fdpp.checkpoints.integer_weights import IntegerMatrix, format_of, unpack
from fdpp.checkpoints.quantization_method import Expected, QuantizationMethod
from fdpp.errors import CheckpointError
from fdpp.formats import PACKED

_WORDS, _SIZES, _SCALES = ("I32",), ("I64", "I32"), ("F16", "BF16", "F32")
_EIGHT_BIT_ZERO = 128
_AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # of eight, in a word of 32 bits from the lowest on


class IntegerMethod(QuantizationMethod):
    """Codes with a scale, and a code that stands for 0, for each group of columns of a row.

    Attributes:
        order: the part that may name the group of each column.
        bits: of a code.
        group_size: columns of a group; -1 for all of them.
    """

    def __init__(self, bits: int, group_size: int, *others: str) -> None:
        super().__init__(*others)
        self.bits, self.group_size = bits, group_size

    @abstractmethod
    def expected(self, rows: int, columns: int, groups: int) -> Expected:
        """The dtypes that each part may have, and its shape."""

    @abstractmethod
    def codes_and_zeros(self, module: str, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Codes ``[N, K]`` and zeros ``[N, G]``, uint8; the zeros may have more rows."""

    @abstractmethod
    def scales(self, parts: Mapping[str, Tensor]) -> Tensor:
        """``[N, G]``."""

    def expected_of(self, module: str, rows: int, columns: int) -> Expected:
        self.checked_format(module, columns)
        return self.expected(rows, columns, columns // self._group(columns))

    def checked_format(self, module: str, columns: int) -> str | None:
        """The format that the matrix is packed in; None where it is unpacked."""
        group = self._group(columns)
        if columns % group or (found := format_of(self.bits, columns, group)) is None:
            block = min(of.block for name, of in PACKED.items() if name.startswith(f"int{self.bits}_"))
            wanted = f"groups of a multiple of {block} columns that divide its {columns}"
            raise CheckpointError(f"{module}: expected {wanted}, got group_size {self.group_size!r:.80}")
        return found

    def groups(self, module: str, columns: int, order: Tensor | None) -> Tensor:
        """int64 ``[K]``: the group of each column, which ``order`` names or which are side by side."""
        count = columns // self._group(columns)
        if order is None:
            return torch.arange(columns, dtype=torch.int64, device="cpu") // self._group(columns)
        low, high = (int(extreme) for extreme in order.aminmax())
        if low < 0 or high >= count:
            raise CheckpointError(f"tensor {module}.{self.order}: expected 0 to {count - 1}, got {low} to {high}")
        return order.long()

    def matrix(self, module: str, parts: Mapping[str, Tensor]) -> IntegerMatrix:
        """What a module's parts hold."""
        codes, zeros = self.codes_and_zeros(module, parts)
        rows, columns = codes.shape
        order = parts.get(self.order) if self.order is not None else None
        return IntegerMatrix(codes, self.scales(parts), zeros[:rows], self.groups(module, columns, order))

    def _group(self, columns: int) -> int:
        return columns if self.group_size == -1 else self.group_size

    def _words(self, codes: int) -> int:
        return -(-codes * self.bits // 32)


class Gptq(IntegerMethod):
    """GPTQ: words along K, scales and zeros by group; see the formats "gptq" and "gptq_v2" of GPTQModel."""

    codes, order = "qweight", "g_idx"

    def __init__(self, bits: int, group_size: int, zero_offset: int, needs_order: bool) -> None:
        super().__init__(bits, group_size, "qzeros", "scales", *("g_idx",) * needs_order)
        self._zero_offset = zero_offset  # is added to a zero as it is stored

    def size(self, codes: tuple[int, int]) -> tuple[int, int]:
        return codes[1], codes[0] * 32 // self.bits

    def expected(self, rows: int, columns: int, groups: int) -> Expected:
        return {
            "qweight": (_WORDS, (self._words(columns), rows)),
            "qzeros": (_WORDS, (groups, self._words(rows))),
            "scales": (_SCALES, (groups, rows)),
            "g_idx": (_WORDS, (columns,)),
        }

    def codes_and_zeros(self, module: str, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        # A zero of 15 is stored where 16 is meant, which no code of 4 bits has: the sum must not wrap.
        zeros = unpack(parts["qzeros"], self.bits).T.to(torch.int16) + self._zero_offset
        codes = unpack(parts["qweight"].T, self.bits)
        if self.bits == 8 and not bool((zeros[: len(codes)] == _EIGHT_BIT_ZERO).all()):
            raise CheckpointError(f"tensor {module}.qzeros: expected 128 as the zero of codes of 8 bits, got others")
        return codes, zeros.to(torch.uint8)

    def scales(self, parts: Mapping[str, Tensor]) -> Tensor:
        return parts["scales"].T


class Awq(IntegerMethod):
    """AWQ's version "gemm": words along N, whose eight columns are shuffled."""

    codes = "qweight"

    def __init__(self, group_size: int) -> None:
        super().__init__(4, group_size, "qzeros", "scales")

    def size(self, codes: tuple[int, int]) -> tuple[int, int]:
        return codes[1] * 8, codes[0]

    def expected(self, rows: int, columns: int, groups: int) -> Expected:
        return {
            "qweight": (_WORDS, (columns, rows // 8)),
            "qzeros": (_WORDS, (groups, rows // 8)),
            "scales": (_SCALES, (groups, rows)),
        }

    def codes_and_zeros(self, module: str, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return _shuffled_back(parts["qweight"]), _shuffled_back(parts["qzeros"])

    def scales(self, parts: Mapping[str, Tensor]) -> Tensor:
        return parts["scales"].T


def _shuffled_back(words: Tensor) -> Tensor:
    eights = unpack(words, 4).view(len(words), -1, 8)
    own = torch.tensor(_AWQ_COLUMNS, dtype=torch.int64, device="cpu").argsort()
    return eights[..., own].flatten(1).T.contiguous()


class PackQuantized(IntegerMethod):
    """compressed-tensors' "pack-quantized": rows of words; codes and zeros are stored with their sign bit inverted."""

    codes, order = "weight_packed", "weight_g_idx"

    def __init__(self, bits: int, group_size: int, has_zeros: bool, needs_order: bool) -> None:
        zeros, order = ("weight_zero_point",) * has_zeros, ("weight_g_idx",) * needs_order
        super().__init__(bits, group_size, "weight_scale", "weight_shape", *zeros, *order)
        self._has_zeros = has_zeros

    def size(self, codes: tuple[int, int]) -> tuple[int, int]:
        return codes[0], codes[1] * 32 // self.bits

    def expected(self, rows: int, columns: int, groups: int) -> Expected:
        return {
            "weight_packed": (_WORDS, (rows, self._words(columns))),
            "weight_scale": (_SCALES, (rows, groups)),
            "weight_shape": (_SIZES, (2,)),
            "weight_zero_point": (_WORDS, (self._words(rows), groups)),
            "weight_g_idx": (_WORDS, (columns,)),
        }

    def codes_and_zeros(self, module: str, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        codes = unpack(parts["weight_packed"], self.bits)
        if (said := parts["weight_shape"].tolist()) != list(codes.shape):
            raise CheckpointError(f"tensor {module}.weight_shape: expected {list(codes.shape)}, got {said!r:.80}")
        if self._has_zeros:
            return codes, unpack(parts["weight_zero_point"].T, self.bits).T
        return codes, torch.full_like(parts["weight_scale"], 1 << (self.bits - 1), dtype=torch.uint8, device="cpu")

    def scales(self, parts: Mapping[str, Tensor]) -> Tensor:
        return parts["weight_scale"]


class IntQuantized(IntegerMethod):
    """compressed-tensors' "int-quantized": a signed byte for each element, a scale for each row or one for all."""

    codes, ignored = "weight", ("input_scale", "input_zero_point")

    def __init__(self, has_row_scales: bool) -> None:
        super().__init__(8, -1, "weight_scale")
        self._has_row_scales = has_row_scales

    def size(self, codes: tuple[int, int]) -> tuple[int, int]:
        return codes

    def checked_format(self, module: str, columns: int) -> str | None:
        return format_of(self.bits, columns, columns)

    def expected(self, rows: int, columns: int, groups: int) -> Expected:
        scales = (rows, 1) if self._has_row_scales else (1,)
        return {"weight": (("I8",), (rows, columns)), "weight_scale": (_SCALES, scales)}

    def codes_and_zeros(self, module: str, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        codes = parts["weight"].view(torch.uint8) ^ _EIGHT_BIT_ZERO
        return codes, torch.full((len(codes), 1), _EIGHT_BIT_ZERO, dtype=torch.uint8, device="cpu")

    def scales(self, parts: Mapping[str, Tensor]) -> Tensor:
        return parts["weight_scale"].reshape(-1, 1).expand(len(parts["weight"]), 1)
