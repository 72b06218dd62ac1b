"""Wrong input raises RuntimeError with the tensor's name and what came, and the process lives on."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from .valid import CALLS, call_op, required_tensors, valid_arguments


def wrong_dtype(x: torch.Tensor) -> torch.Tensor:
    return x.double() if x.is_floating_point() else x.to(torch.int16)


def wrong_rank(x: torch.Tensor) -> torch.Tensor:
    return x[None, None, None, None, None]


def with_gaps(x: torch.Tensor) -> torch.Tensor:
    """The same values, last dimension not contiguous."""
    return torch.stack([x, x], dim=-1)[..., 0]


def emptied(x: torch.Tensor) -> torch.Tensor:
    """Memory given back, as sharded training does with weights that it does not need."""
    x = x.clone()
    x.untyped_storage().resize_(0)
    return x


#: Applied to every tensor of every operator: a name, the change, and a pattern for what the message says came.
CHANGES: list[tuple[str, Callable[[torch.Tensor], torch.Tensor | None], str]] = [
    ("dtype", wrong_dtype, r"float64|double|int16|short"),
    ("device", lambda x: x.to("meta"), r"meta"),
    ("rank", wrong_rank, r"\[1, 1, 1, 1, 1|[5-9]"),
    ("last dimension not contiguous", with_gaps, r"contiguous|stride"),
    ("None", lambda x: None, "none"),
    ("empty storage", emptied, r"storage of at least \d+ bytes, not 0"),
]
#: Right by contract: leading dimensions of any number.
ALLOWED = {
    *((call, "x", "rank") for call in ("gemv", "flat_gemm", "linear", "quantized_linear", "rms_norm", "layer_norm")),
    ("dequantize_rows", "rows", "rank"),
    ("dequantize_rows", "rows", "last dimension not contiguous"),
    ("silu_mul", "gate_up", "rank"),
    ("silu_mul", "gate_up", "device"),  # alone on the meta device: a question for the fake, with an answer
    *((call, name, "None") for call in CALLS for name in valid_arguments(call, "cpu").keys() - required_tensors(call)),
}


def is_allowed(call: str, name: str, kind: str) -> bool:
    return (call, name, kind) in ALLOWED


def _generic():
    for call in CALLS:
        for name, value in valid_arguments(call, "cpu").items():
            for kind, change, came in CHANGES:
                if isinstance(value, torch.Tensor) and not is_allowed(call, name, kind):
                    yield pytest.param(call, name, change, came, id=f"{call}-{name}-{kind}")


@pytest.mark.parametrize("call, name, change, came", _generic())
def test_every_tensor(backend, ops, call, name, change, came):
    arguments = valid_arguments(call, backend.device, backend.dtypes[0])
    arguments[name] = change(arguments[name])
    with pytest.raises(RuntimeError) as caught:
        call_op(ops, call, arguments)
    message = str(caught.value).splitlines()[0]
    assert re.search(rf"\b{name}\b", message), message
    assert re.search(came, message.lower()), message


@dataclass(frozen=True)
class Wrong:
    """New values for some arguments, given the old ones; the names that the message may blame; what came."""

    call: str
    changes: dict[str, Callable[[Any], Any]]
    names: str
    came: str

    def __str__(self) -> str:
        return f"{self.call}-{'+'.join(self.changes)}-{self.came}"


def value(new: Any) -> Callable[[Any], Any]:
    return lambda old: new


def narrow(dim: int, size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x.narrow(dim, 0, size).contiguous()


def filled(*shape: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.ones(shape, dtype=x.dtype, device=x.device)


def entry(index: tuple[int, ...], new: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[index] = new
        return x

    return change


CACHES = ("k_cache", "v_cache")
WRONG = [
    # decode_attention: sizes
    *(Wrong("decode_attention", {"q": filled(2, n, 6, 64)}, "q|Sq", rf"\b{n}\b") for n in (0, 17)),
    *(
        Wrong(
            call, {"q": filled(2, 3, 6, d)} | {c: filled(*s, 2, d) for c in CACHES}, "q|k_cache|head_dim|D", rf"\b{d}\b"
        )
        for d in (0, 1, 32, 65, 72, 160, 257, 512)
        for call, s in (("decode_attention", (2, 24)), ("decode_attention_paged", (5, 8)))
    ),
    Wrong("decode_attention", {"q": filled(2, 3, 5, 64)}, "q|Hq", r"\b5\b"),
    Wrong("decode_attention", {"q": filled(2, 3, 0, 64)}, "q|Hq", r"\b0\b"),
    Wrong("decode_attention", {c: filled(2, 24, 0, 64) for c in CACHES}, "q|k_cache", r"\b0\b"),
    Wrong("decode_attention", {"k_cache": filled(2, 24, 2, 128)}, "k_cache", r"\b128\b"),
    Wrong("decode_attention", {"v_cache": filled(2, 24, 2, 128)}, "v_cache", r"\b128\b"),
    Wrong("decode_attention", {"v_cache": filled(2, 24, 3, 64)}, "v_cache", r"\b3\b"),
    Wrong("decode_attention", {"v_cache": filled(2, 23, 2, 64)}, "v_cache", r"\b23\b"),
    Wrong("decode_attention", {c: filled(3, 24, 2, 64) for c in CACHES}, "k_cache", r"\b3\b"),
    Wrong("decode_attention", {c: filled(1, 24, 2, 64) for c in CACHES}, "k_cache", r"\b1\b"),
    Wrong("decode_attention_paged", {"v_cache": filled(4, 8, 2, 64)}, "v_cache", r"\b4\b"),
    Wrong("decode_attention_paged", {c: filled(5, 0, 2, 64) for c in CACHES}, "k_cache|page|cache_seqlens", r"\b0\b"),
    Wrong("decode_attention", {"cache_seqlens": filled(3)}, "cache_seqlens", r"\b3\b"),
    Wrong("decode_attention_paged", {"block_table": filled(3, 3)}, "block_table", r"\b3\b"),
    *(
        Wrong("decode_attention", {name: filled(5)}, name, r"\b5\b")
        for name in ("phi", "alibi_slopes", "sinks", "rereference_count")
    ),
    # decode_attention: options
    Wrong("decode_attention", {"window": value(-2)}, "window", "-2"),
    Wrong("decode_attention", {"num_splits": value(-1)}, "num_splits", "-1"),
    Wrong("decode_attention", {"num_splits": value(1_000_000)}, "num_splits", "1000000"),
    *(
        Wrong("decode_attention", {"softcap": value(x)}, "softcap", f"{x:g}".replace("+", r"\+"))
        for x in (-1.0, -0.1, 1e-7, 1e-300, 1.1e30, 3e38, float("inf"), float("nan"))
    ),
    *(
        Wrong("decode_attention", {"softmax_scale": value(x)}, "softmax_scale", f"{x:g}".replace("+", r"\+"))
        for x in (float("nan"), float("inf"), 1e31)
    ),
    # dtypes that do not fit each other
    *(
        Wrong("decode_attention", {name: lambda x: x.bfloat16()}, "q|k_cache|v_cache", "bfloat16")
        for name in ("q", *CACHES)
    ),
    *(Wrong("rope_append", {name: lambda x: x.bfloat16()}, "q|k|v|k_cache|v_cache", "bfloat16") for name in "qkv"),
    *(
        Wrong(op, {"weight": lambda x: x.bfloat16()}, "weight", "bfloat16")
        for op in ("gemv", "flat_gemm", "linear", "rms_norm", "layer_norm")
    ),
    *(
        Wrong(op, {"bias": lambda x: x.bfloat16()}, "bias", "bfloat16")
        for op in ("gemv", "flat_gemm", "linear", "layer_norm", "add_layer_norm")
    ),
    Wrong("add_rms_norm", {"residual": lambda x: x.bfloat16()}, "residual", "bfloat16"),
    Wrong(
        "add_rms_norm",
        {"x": lambda x: x.half(), "weight": lambda x: x.half(), "residual": lambda x: x.bfloat16()},
        "residual",
        "bfloat16",
    ),
    # linear
    *(Wrong(op, {"weight": narrow(1, 23)}, "x|weight", r"\b23\b") for op in ("gemv", "flat_gemm", "linear")),
    *(Wrong(op, {"bias": narrow(0, 9)}, "bias", r"\b9\b") for op in ("gemv", "flat_gemm", "linear")),
    *(
        Wrong(op, {"x": filled()}, "x", r"\b0\b|\[\]|scalar")
        for op in ("gemv", "flat_gemm", "linear", "rms_norm", "layer_norm")
    ),
    *(
        Wrong(op, {"weight": narrow(0, 9), "bias": narrow(0, 9)}, "weight", r"\b9\b")
        for op in ("gemv", "flat_gemm", "linear")
    ),
    *(Wrong(op, {"residual": filled(4, 10)}, "residual", r"\b10\b") for op in ("gemv", "flat_gemm", "linear")),
    *(Wrong(op, {"residual": filled(5)}, "residual", r"\b5\b") for op in ("gemv", "flat_gemm", "linear")),
    *(
        Wrong(op, {"residual": lambda x: x.bfloat16()}, "residual", "bfloat16")
        for op in ("gemv", "flat_gemm", "linear")
    ),
    Wrong("flat_gemm", {"x": filled(65, 24), "residual": filled(65, 5)}, "x|M", r"\b65\b"),
    *(Wrong("flat_gemm", {"config": value(c)}, "config", str(c)) for c in (-2, 1_000_000)),
    # norms and silu_mul
    *(
        Wrong(op, {"weight": narrow(0, 23)}, "weight", r"\b23\b")
        for op in ("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm")
    ),
    *(Wrong(op, {"bias": narrow(0, 23)}, "bias", r"\b23\b") for op in ("layer_norm", "add_layer_norm")),
    Wrong("add_layer_norm", {"residual": narrow(0, 1)}, "residual", r"\b1\b"),
    Wrong("add_rms_norm", {"residual": narrow(0, 1)}, "residual", r"\b1\b"),
    Wrong(
        "add_rms_norm",
        {"residual": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)},
        "residual",
        "contiguous|stride",
    ),
    Wrong("silu_mul", {"gate_up": narrow(2, 23)}, "gate_up", r"\b23\b"),
    # rope_append: sizes
    Wrong("rope_append", {"k": filled(2, 2, 2, 64)}, "k", r"\b2\b"),
    Wrong("rope_append", {"k": filled(1, 3, 2, 64)}, "k", r"\b1\b"),
    Wrong("rope_append", {"k": filled(2, 3, 4, 64)}, "k|k_cache", r"\b4\b"),
    Wrong("rope_append", {"k": filled(2, 3, 2, 80)}, "k", r"\b80\b"),
    Wrong("rope_append", {"v": filled(2, 3, 2, 80)}, "v", r"\b80\b"),
    Wrong("rope_append", {"v": filled(2, 3, 1, 64)}, "v", r"\b1\b"),
    Wrong("rope_append", {t: filled(20, 33) for t in ("cos", "sin")}, "cos", r"\b(33|66)\b"),
    Wrong("rope_append", {"sin": filled(20, 31)}, "sin", r"\b31\b"),
    Wrong("rope_append", {"sin": filled(19, 32)}, "sin", r"\b19\b"),
    Wrong("rope_append", {"positions": filled(2, 2)}, "positions", r"\b2\b"),
    Wrong("rope_append", {"k_cache": filled(2, 24, 2, 80)}, "k_cache", r"\b80\b"),
    Wrong("rope_append", {"v_cache": filled(2, 23, 2, 64)}, "v_cache", r"\b23\b"),
    Wrong("rope_append", {c: filled(3, 24, 2, 64) for c in CACHES}, "k_cache", r"\b3\b"),
    Wrong("rope_append_paged", {"block_table": filled(3, 3)}, "block_table", r"\b3\b"),
]

#: What tensors of lengths, positions and pages hold.
WRONG_VALUES = [
    # decode_attention
    *(
        Wrong("decode_attention", {"cache_seqlens": entry((1,), n)}, "cache_seqlens", rf"{n}\b")
        for n in (25, -1, 2**31 - 1)
    ),
    *(Wrong("decode_attention_paged", {"cache_seqlens": entry((1,), n)}, "cache_seqlens", rf"{n}\b") for n in (25, -1)),
    *(
        Wrong("decode_attention_paged", {"block_table": entry((0, 2), page)}, "block_table", rf"{page}\b")
        for page in (5, -1, 2**31 - 1, -(2**31))
    ),
    # rope_append
    *(Wrong("rope_append", {"positions": entry((0, 1), n)}, "positions", rf"\b{n}\b") for n in (20, 24, 2**31 - 1)),
    Wrong("rope_append", {c: filled(2, 18, 2, 64) for c in CACHES}, "positions", r"\b(17|18|19)\b"),
    Wrong("rope_append_paged", {"block_table": narrow(1, 2)}, "positions", r"\b(17|18|19)\b"),
    *(
        Wrong("rope_append_paged", {"block_table": entry((0, 2), page)}, "block_table", rf"{page}\b")
        for page in (5, -1, 2**31 - 1)
    ),
]


def check(backend, ops, wrong: Wrong) -> None:
    arguments = valid_arguments(wrong.call, backend.device, backend.dtypes[0])
    before = {name: arguments[name].clone() for name in ("k_cache", "v_cache", "residual") if name in arguments}
    arguments |= {name: change(arguments[name]) for name, change in wrong.changes.items()}
    with pytest.raises(RuntimeError) as caught:
        call_op(ops, wrong.call, arguments)
    message = str(caught.value).splitlines()[0]
    assert re.search(rf"\b({wrong.names})\b", message), message
    assert re.search(wrong.came, message.lower()), message
    for name in before.keys() - wrong.changes.keys():
        assert torch.equal(arguments[name], before[name]), f"{name} was written before the inputs were checked"


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_sizes_and_options(backend, ops, wrong):
    check(backend, ops, wrong)


@pytest.mark.where(lambda backend: backend.checks_values)
@pytest.mark.parametrize("wrong", WRONG_VALUES, ids=str)
def test_values(backend, ops, wrong):
    """Elsewhere: test_values_that_cannot_be_checked_give_nan."""
    check(backend, ops, wrong)


PAGED_CAPACITY = r"capacity 24 \(block_table has 3 columns of 8-token pages\)"


@pytest.mark.where(lambda backend: backend.checks_values)
@pytest.mark.parametrize(
    "call, name, index, new, capacity",
    [
        ("decode_attention", "cache_seqlens", (1,), 25, "capacity 24;"),
        ("decode_attention_paged", "cache_seqlens", (1,), 25, PAGED_CAPACITY),
        ("rope_append", "positions", (0, 1), 24, "rows of cos, 20, .*capacity 24;"),
        ("rope_append_paged", "positions", (0, 1), 24, "rows of cos, 20, .*" + PAGED_CAPACITY),
    ],
)
def test_where_a_capacity_comes_from(backend, ops, call, name, index, new, capacity):
    arguments = valid_arguments(call, backend.device, backend.dtypes[0])
    arguments[name] = entry(index, new)(arguments[name])
    with pytest.raises(RuntimeError, match=capacity):
        call_op(ops, call, arguments)


@pytest.mark.where(lambda backend: backend.alignment > 1)
def test_what_a_gpu_kernel_cannot_load_is_refused(backend, dtype, ops):
    arguments = valid_arguments("decode_attention", backend.device, dtype)
    for name in ("q", *CACHES):
        x = arguments[name]
        wide = torch.zeros(*x.shape[:-1], x.shape[-1] + 8, dtype=dtype, device=x.device)
        odd = torch.zeros(*x.shape[:-1], x.shape[-1] + 1, dtype=dtype, device=x.device)
        call_op(ops, "decode_attention", arguments | {name: wide[..., :-8]})
        for view in (wide[..., 4:-4], odd[..., :-1]):
            with pytest.raises(RuntimeError, match=rf"\b{name}\b.*16 bytes"):
                call_op(ops, "decode_attention", arguments | {name: view})
    with pytest.raises(RuntimeError, match=r"\bq\b.*float16 or bfloat16.*float32"):
        call_op(ops, "decode_attention", valid_arguments("decode_attention", backend.device))


@pytest.mark.parametrize("call", CALLS)
def test_valid_arguments_are_valid(backend, dtype, ops, call):
    """What the errors above begin with raises nothing, in every dtype."""
    arguments = valid_arguments(call, backend.device, dtype)
    expected = torch.float32 if "gated" in arguments else dtype
    assert call_op(ops, call, arguments).dtype == expected


@pytest.mark.parametrize("call", CALLS)
def test_unknown_floating_dtypes(backend, ops, call):
    """All tensors agree, on a dtype that has no kernel."""
    for dtype in (torch.float64, torch.float8_e4m3fn, torch.int32):
        with pytest.raises(RuntimeError, match=r"(?i)double|float64|float8|int"):
            call_op(ops, call, valid_arguments(call, backend.device, dtype))


@pytest.mark.parametrize("call", CALLS)
def test_nothing_but_none(backend, ops, call):
    first = next(iter(valid_arguments(call, backend.device)))
    arguments = {n: None if isinstance(x, torch.Tensor) else x for n, x in valid_arguments(call, "cpu").items()}
    with pytest.raises(RuntimeError, match=rf"fdpp::\w+: {first} must be a tensor; got None"):
        call_op(ops, call, arguments)


@pytest.mark.parametrize(
    "change",
    [torch.Tensor.to_sparse, torch.Tensor.to_mkldnn, lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)],
    ids=["sparse", "mkldnn", "quantised"],
)
def test_layouts_without_a_kernel(backend, ops, change):
    x, weight = torch.ones(4, 24), torch.ones(10, 24)
    with pytest.raises(RuntimeError, match=r"fdpp::linear: weight must be a dense, strided tensor.*\[10, 24\]"):
        ops.linear(x, change(weight))
