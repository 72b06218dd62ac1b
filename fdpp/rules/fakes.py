"""Fake kernels: results without data, for ``torch.compile``, ``torch.export`` and meta tensors.

A fake refuses what its operator refuses, because it runs the operator's own checks: those of the C++ library, as
kernels for meta tensors (csrc/torch/cpu/meta.cpp). They see numbers only, so a symbolic size enters them as its hint,
the size of the call that is being traced: that refuses a wrong model, and adds no guard to the compiled code, whose
later calls with other sizes are checked by the real kernels. Where a size has no hint (it depends on data), the call
is checked when it runs. The result has the symbolic sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import _disable_current_modes

from fdpp.formats import layout_rows
from fdpp.rules.arguments import by_name, tensors_of

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


def _linear(x: Tensor, weight: Tensor, residual: Tensor | None = None, gated: bool = False, **_: Any) -> Tensor:
    columns = weight.shape[0] // 2 if gated else weight.shape[0]
    return (x if residual is None else residual).new_empty((*x.shape[:-1], columns))


def _quantized_linear(x: Tensor, layout: str, residual: Tensor | None = None, gated: bool = False, **_: Any) -> Tensor:
    rows = layout_rows(layout)
    return (x if residual is None else residual).new_empty((*x.shape[:-1], rows // 2 if gated else rows))


def _dequantize_rows(rows: Tensor, columns: int, dtype: torch.dtype = torch.float32, **_: Any) -> Tensor:
    return rows.new_empty((*rows.shape, columns), dtype=dtype)


#: From the checked arguments of an operator to its result.
RESULTS: dict[str, Callable[..., Tensor]] = {
    "decode_attention": lambda q, **_: q.new_empty(q.shape),
    "gemv": _linear,
    "flat_gemm": _linear,
    "linear": _linear,
    "quantized_linear": _quantized_linear,
    "dequantize_rows": _dequantize_rows,
    "rms_norm": lambda x, **_: x.new_empty(x.shape),
    "add_rms_norm": lambda x, **_: x.new_empty(x.shape),
    "layer_norm": lambda x, **_: x.new_empty(x.shape),
    "add_layer_norm": lambda x, **_: x.new_empty(x.shape),
    "rope_append": lambda q, **_: q.new_empty(q.shape),
    "silu_mul": lambda gate_up: gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2)),
}


def register(op: OpOverload, gpu: bool) -> None:
    """Give the operator its fake kernel, with the checks of a GPU's kernels where the tensors, or ``gpu``, say so."""
    result = RESULTS[op._opname]
    check, gpu_check = (
        getattr(getattr(namespace, op._opname), op._overloadname)
        for namespace in (torch.ops.fdpp_meta, torch.ops.fdpp_meta_gpu)
    )

    def fake(*args: Any, **kwargs: Any) -> Tensor:
        arguments = by_name(op, args, kwargs)
        device = _common_device(op, arguments)
        with _disable_current_modes():
            known = {name: _without_symbols(value) for name, value in arguments.items()}
            if _UNKNOWN not in known.values():
                (gpu_check if gpu or device.type == "cuda" else check)(**known)
        return result(**arguments)

    torch.library.register_fake(op.name(), fake)


def _common_device(op: OpOverload, arguments: dict[str, Any]) -> torch.device:
    """One meta tensor among real ones sends a call here, too: nothing may come back that was never computed."""
    (first, leader), *others = tensors_of(op, arguments).items()
    for name, tensor in others:
        if tensor.device != leader.device:
            raise RuntimeError(
                f"fdpp::{op._opname}: {name} must be on the device of {first}, {leader.device}; got {tensor.device}"
            )
    return leader.device


class _Unknown:
    """Stands for what has no hint."""


_UNKNOWN = _Unknown()


def _without_symbols(value: Any) -> Any:
    """The hint of a symbol, a meta tensor with the hints of its sizes and strides, or the value itself."""
    if isinstance(value, _SYMBOLIC):
        return _UNKNOWN if value.node.hint is None else value.node.hint
    if not isinstance(value, Tensor):
        return value
    sizes, strides = ([_without_symbols(n) for n in numbers] for numbers in (value.shape, value.stride()))
    if _UNKNOWN in sizes + strides:
        return _UNKNOWN
    return torch.empty_strided(sizes, strides, dtype=value.dtype, device="meta")
