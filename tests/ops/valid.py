"""One set of valid arguments per operator: what the tests of errors, schemas and compilation begin with."""

from __future__ import annotations

from typing import Any

import torch

from fdpp import formats

from .stored import random_blocks


def valid_arguments(name: str, device: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The arguments of ``fdpp.ops.<name>`` by name; every tensor is given, whether optional or not.

    ``"decode_attention_paged"`` and ``"rope_append_paged"`` are the same operators on a paged cache.
    """
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    def int32(*values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    def packed(rows: int, columns: int) -> torch.Tensor:
        return formats.pack(random_blocks("q4_1", rows, columns), "q4_1").to(device)

    def linear() -> dict[str, Any]:
        return {
            "x": randn(4, 24),
            "weight": randn(10, 24),
            "bias": randn(10),
            "residual": randn(4, 5, dtype=torch.float32),
            "gated": True,
            "activation": "gelu",
        }

    def attention(*cache_shape: int) -> dict[str, Any]:
        return {
            "q": randn(2, 3, 6, 64),
            "k_cache": randn(*cache_shape, 2, 64),
            "v_cache": randn(*cache_shape, 2, 64),
            "cache_seqlens": int32(20, 9),
            "block_table": None if cache_shape[0] == 2 else int32([4, 0, 3], [1, 2, 2**31 - 1]),
            "softmax_scale": 0.1,
            "phi": randn(6, dtype=torch.float32),
            "window": 12,
            "softcap": 20.0,
            "alibi_slopes": randn(6, dtype=torch.float32),
            "sinks": randn(6, dtype=torch.float32),
            "num_splits": 2,
            "rereference_count": torch.zeros(6, dtype=torch.int64, device=device),
        }

    def rope(*cache_shape: int) -> dict[str, Any]:
        return {
            "q": randn(2, 3, 6, 64),
            "k": randn(2, 3, 2, 64),
            "v": randn(2, 3, 2, 64),
            "cos": randn(20, 32, dtype=torch.float32),
            "sin": randn(20, 32, dtype=torch.float32),
            "positions": int32([17, 18, 19], [-1, 6, 7]),
            "k_cache": randn(*cache_shape, 2, 64),
            "v_cache": randn(*cache_shape, 2, 64),
            "block_table": None if cache_shape[0] == 2 else int32([4, 0, 3], [1, 2, 2**31 - 1]),
            "interleaved": True,
        }

    return {
        "decode_attention": lambda: attention(2, 24),
        "decode_attention_paged": lambda: attention(5, 8),
        "gemv": linear,
        "flat_gemm": lambda: linear() | {"config": 0},
        "linear": linear,
        "quantized_linear": lambda: {
            "x": randn(4, 64),
            "weight": packed(10, 64),
            "layout": "q4_1:10",
            **{name: value for name, value in linear().items() if name not in ("x", "weight")},
        },
        "dequantize_rows": lambda: {
            "weight": packed(10, 64),
            "layout": "q4_1:10",
            "columns": 64,
            "rows": torch.tensor([[3, 9], [0, 3]], device=device),
            "dtype": dtype,
        },
        "rms_norm": lambda: {"x": randn(2, 3, 24), "weight": randn(24), "eps": 1e-5},
        "add_rms_norm": lambda: {
            "x": randn(2, 3, 24),
            "residual": randn(2, 3, 24),
            "weight": randn(24),
            "eps": 1e-5,
        },
        "layer_norm": lambda: {"x": randn(2, 3, 24), "weight": randn(24), "bias": randn(24), "eps": 1e-5},
        "add_layer_norm": lambda: {
            "x": randn(2, 3, 24),
            "residual": randn(2, 3, 24),
            "weight": randn(24),
            "bias": randn(24),
            "eps": 1e-5,
        },
        "rope_append": lambda: rope(2, 24),
        "rope_append_paged": lambda: rope(5, 8),
        "silu_mul": lambda: {"gate_up": randn(2, 3, 24)},
    }[name]()


CALLS = [
    "decode_attention",
    "decode_attention_paged",
    "gemv",
    "flat_gemm",
    "linear",
    "quantized_linear",
    "dequantize_rows",
    "rms_norm",
    "add_rms_norm",
    "layer_norm",
    "add_layer_norm",
    "rope_append",
    "rope_append_paged",
    "silu_mul",
]


def op_name(call: str) -> str:
    return call.removesuffix("_paged")


#: Every operator by its name.
OPERATORS = sorted({op_name(call) for call in CALLS})


def overloads(call: str, namespace: str = "fdpp") -> list[torch._ops.OpOverload]:
    """All of an operator; the last takes every argument."""
    packet = getattr(getattr(torch.ops, namespace), op_name(call))
    return [getattr(packet, overload) for overload in packet.overloads()]


def required_tensors(call: str) -> set[str]:
    """Names of the tensors that may not be None."""
    schema = overloads(call)[0]._schema
    return {argument.name for argument in schema.arguments if isinstance(argument.type, torch.TensorType)}


def without_optional(call: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Nothing but what the shortest overload requires (a paged cache requires its table)."""
    schema = overloads(call)[0]._schema
    names = {argument.name for argument in schema.arguments if not argument.has_default_value()}
    names |= {"block_table"} if call.endswith("_paged") else set()
    return {name: value for name, value in arguments.items() if name in names}


def split_arguments(call: str, arguments: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword-only arguments, as the schema has them."""
    keyword = {argument.name for argument in overloads(call)[-1]._schema.arguments if argument.kwarg_only}
    positional = [value for name, value in arguments.items() if name not in keyword]
    return positional, {name: value for name, value in arguments.items() if name in keyword}


def call_op(ops: Any, call: str, arguments: dict[str, Any]) -> torch.Tensor:
    """Call the operator of ``ops`` with arguments as :func:`valid_arguments` gives them."""
    positional, keyword = split_arguments(call, arguments)
    return getattr(ops, op_name(call))(*positional, **keyword)
