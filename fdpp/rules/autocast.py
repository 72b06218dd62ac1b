"""What the operators do under ``torch.autocast``, where activations, weights and caches come in different dtypes.

Products cast as ``torch.nn.functional.linear`` does, and a float32 residual stays float32, as it would in an addition
of torch. Everything else takes the dtype of what is expensive to cast or must not be, because it is written: the cache,
the residual; a norm takes that of its input, and computes in float32 anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from fdpp.rules.arguments import by_name, registered_name

_DEVICES = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}  # torch calls AMD's GPUs cuda, too

Arguments = dict[str, Any]


def _products(dtype: torch.dtype, arguments: Arguments) -> dict[str, torch.dtype]:
    residual = arguments.get("residual")
    keeps_residual = residual is not None and residual.dtype == torch.float32
    return {name: dtype for name in ("x", "weight", "bias", "residual") if not (name == "residual" and keeps_residual)}


def _norm(dtype: torch.dtype, arguments: Arguments) -> dict[str, torch.dtype]:
    return dict.fromkeys(("weight", "bias"), arguments["x"].dtype)


def _add_norm(dtype: torch.dtype, arguments: Arguments) -> dict[str, torch.dtype]:
    x, residual = arguments["x"], arguments["residual"]
    dtype = x.dtype if residual.dtype == torch.float32 else residual.dtype
    return {"x": dtype, "weight": dtype, "bias": dtype}


def _as_cache(dtype: torch.dtype, arguments: Arguments) -> dict[str, torch.dtype]:
    return dict.fromkeys(("q", "k", "v"), arguments["k_cache"].dtype)


#: From the dtype of autocast and the arguments to the dtypes that some of them are cast to. silu_mul and
#: dequantize_rows need no rule.
RULES: dict[str, Callable[[torch.dtype, Arguments], dict[str, torch.dtype]]] = {
    "gemv": _products,
    "flat_gemm": _products,
    "linear": _products,
    "quantized_linear": _products,
    "rms_norm": _norm,
    "add_rms_norm": _add_norm,
    "layer_norm": _norm,
    "add_layer_norm": _add_norm,
    "rope_append": _as_cache,
    "decode_attention": _as_cache,
}


def register(library: torch.library.Library, op: OpOverload) -> None:
    """Give the operator its rule on every device."""
    if op._opname in RULES:
        for device, key in _DEVICES.items():
            library.impl(registered_name(op), _kernel(op, device, key), key)


def _kernel(op: OpOverload, device: str, key: str) -> Callable[..., Tensor]:
    rule = RULES[op._opname]
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast_and_call(*args: Any, **kwargs: Any) -> Tensor:
        arguments = by_name(op, args, kwargs)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            if all(isinstance(arguments[name], Tensor) for name in _required(op)):
                for name, dtype in rule(torch.get_autocast_dtype(device), arguments).items():
                    if name in arguments:
                        arguments[name] = _cast(arguments[name], dtype, device)
            return op(**arguments)

    return cast_and_call


def _required(op: OpOverload) -> list[str]:
    """Names of the tensors that must be given; the operator says so where one is None."""
    return [a.name for a in op._schema.arguments if isinstance(a.type, torch.TensorType)]


def _cast(value: Any, dtype: torch.dtype, device: str) -> Any:
    """As torch's own rules: float64 stays, and so does what lies on another device."""
    eligible = (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dtype != torch.float64
        and value.device.type == device
    )
    return value.to(dtype) if eligible else value
