"""What fdpp's library can record of torch's own operators: those that every step has, on CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from fdpp.dtypes import NAMES, dtype_name

if TYPE_CHECKING:
    from fdpp._host import RecordedOperators

_aten = torch.ops.aten


def record(native: RecordedOperators, operator: OpOverload, args: Any, kwargs: Any, result: Any) -> bool:
    """Record a call whose result is known already; False, and nothing is recorded, where the library cannot.

    A replay writes into the tensors of the result. They, and those of the arguments, must live as long.
    """
    known = _KNOWN.get(operator)
    return known is not None and known(native, result, *args, **kwargs) is not NotImplemented


def _is_plain(*tensors: Tensor) -> bool:
    return all(tensor.is_cpu and tensor.is_contiguous() for tensor in tensors)


def _zeros(native: RecordedOperators, result: Tensor, *_: Any, **__: Any) -> Any:
    if not _is_plain(result):
        return NotImplemented
    native.zero(result.data_ptr(), result.nbytes)


def _add(native: RecordedOperators, result: Tensor, to: Tensor, other: Any, *alpha: Any) -> Any:
    if alpha or not isinstance(other, Tensor) or not to.dtype == other.dtype == torch.int32 or to.shape != other.shape:
        return NotImplemented
    if not _is_plain(to, other):
        return NotImplemented
    native.add(to.data_ptr(), other.data_ptr(), to.numel())


def _copy(native: RecordedOperators, result: Tensor, to: Tensor, other: Tensor, *_: Any) -> Any:
    if to.dtype != other.dtype or to.shape != other.shape or not _is_plain(to, other):
        return NotImplemented
    native.copy(to.data_ptr(), other.data_ptr(), to.nbytes)


def _clamp(native: RecordedOperators, result: Tensor, x: Tensor, low: Any = None, high: Any = None) -> Any:
    if x.dtype != torch.int64 or type(low) is not int or high is not None or not _is_plain(x, result):
        return NotImplemented
    native.clamp_min(result.data_ptr(), x.data_ptr(), low, x.numel())


def _embedding(native: RecordedOperators, result: Tensor, weight: Tensor, rows: Tensor, *_: Any) -> Any:
    if rows.dtype != torch.int64 or not _is_plain(weight, rows, result):
        return NotImplemented
    row_bytes = weight.shape[1] * weight.itemsize
    native.gather_rows(result.data_ptr(), weight.data_ptr(), rows.data_ptr(), rows.numel(), row_bytes)


def _max(native: RecordedOperators, result: Any, x: Tensor, dim: int, keepdim: bool = False) -> Any:
    values, indices = result
    if dtype_name(x.dtype) not in NAMES or dim not in (-1, x.dim() - 1) or not _is_plain(x, values, indices):
        return NotImplemented
    native.argmax(dtype_name(x.dtype), x.data_ptr(), values.numel(), x.shape[-1], values.data_ptr(), indices.data_ptr())


def _is_finite(native: RecordedOperators, result: Tensor, x: Tensor) -> Any:
    if dtype_name(x.dtype) not in NAMES or not _is_plain(x, result):
        return NotImplemented
    native.is_finite(result.data_ptr(), dtype_name(x.dtype), x.data_ptr(), x.numel())


def _where(native: RecordedOperators, result: Tensor, condition: Tensor, x: Tensor, other: Any) -> Any:
    if x.dtype != torch.int64 or type(other) is not int or condition.shape != x.shape:
        return NotImplemented
    if not _is_plain(condition, x, result):
        return NotImplemented
    native.where(result.data_ptr(), condition.data_ptr(), x.data_ptr(), other, x.numel())


_KNOWN: dict[OpOverload, Callable[..., Any]] = {
    _aten.zeros.default: _zeros,
    _aten.zero_.default: lambda native, result, x: _zeros(native, x),
    _aten.add_.Tensor: _add,
    _aten.copy_.default: _copy,
    _aten.clamp.default: _clamp,
    _aten.embedding.default: _embedding,
    _aten.max.dim: _max,
    _aten.isfinite.default: _is_finite,
    _aten.where.ScalarOther: _where,
}
