"""The operators as members of torch: opcheck, torch.compile without graph breaks, mutation, aliasing, gradients."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from .numeric import assert_close
from .valid import CALLS, call_op, op_name, overloads, split_arguments, valid_arguments, without_optional


@pytest.mark.parametrize("call", CALLS)
def test_opcheck(backend, dtype, ops, call):
    arguments = valid_arguments(call, backend.device, dtype)
    first, last = (overloads(call, backend.namespace)[i] for i in (0, -1))
    for op, given in ((last, arguments), (first, without_optional(call, arguments))):
        positional, keyword = split_arguments(call, given)
        torch.library.opcheck(op, tuple(positional), keyword)


@pytest.mark.parametrize("call", CALLS)
def test_meta_tensors_give_shapes(backend, ops, call):
    """All on the meta device: the shape and dtype of the real result, without data."""
    arguments = valid_arguments(call, backend.device, torch.bfloat16)
    real = call_op(ops, call, arguments)
    meta = call_op(ops, call, {n: x.to("meta") if isinstance(x, torch.Tensor) else x for n, x in arguments.items()})
    assert meta.is_meta and (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.parametrize("call", CALLS)
def test_results_are_new_and_only_what_is_said_changes(backend, ops, call):
    arguments = valid_arguments(call, backend.device, backend.dtypes[0])
    before = {name: x.clone() for name, x in arguments.items() if isinstance(x, torch.Tensor)}
    out = call_op(ops, call, arguments)
    mutated = {a.name for a in overloads(call)[-1]._schema.arguments if a.is_write}
    for name, old in before.items():
        assert out.untyped_storage().data_ptr() != arguments[name].untyped_storage().data_ptr(), name
        if name in mutated - {"rereference_count"}:
            assert not torch.equal(arguments[name], old), f"{name} should have changed"
        elif name not in mutated:
            assert torch.equal(arguments[name], old), f"{name} changed"


def _layer(ops, x, residual, norm, qkv, o, up, down, cos, sin, positions, k_cache, v_cache, lengths, count):
    """One decoder layer made of every operator: 4 query heads, 2 kv heads, head_dim 64."""
    x = ops.add_rms_norm(x, residual, norm, 1e-5)
    q, k, v = ops.linear(x, qkv).unflatten(-1, (-1, 64)).split([4, 2, 2], dim=2)
    q = ops.rope_append(q, k, v, cos, sin, positions, k_cache, v_cache)
    x = ops.decode_attention(q, k_cache, v_cache, lengths, num_splits=2, rereference_count=count)
    x = ops.flat_gemm(x.flatten(2), o)
    x = ops.rms_norm(x, norm, 1e-5)
    x = ops.silu_mul(ops.linear(x, up)) + ops.linear(x, up, gated=True)
    return ops.gemv(x, down, residual=residual)


def _layer_arguments(device: str, dtype: torch.dtype, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.2).to(dtype).to(device)

    hidden, lengths = 256, torch.arange(5, 5 + batch, dtype=torch.int32, device=device)
    angles = torch.rand(16, 32, generator=generator).to(device)
    weights = [randn(hidden), randn(512, hidden), randn(hidden, hidden), randn(128, hidden), randn(hidden, 64)]
    caches = [randn(batch, 16, 2, 64) for _ in range(2)]
    count = torch.zeros(4, dtype=torch.int64, device=device)
    x, residual = randn(batch, 1, hidden), randn(batch, 1, hidden)
    return [x, residual, *weights, angles.cos(), angles.sin(), (lengths - 1).unsqueeze(1), *caches, lengths, count]


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(backend, dtype, ops, dynamic):
    """A layer compiled without graph breaks gives the bits of the eager one, in the result and in what it mutates."""
    torch.compiler.reset()
    compiled = torch.compile(_layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (2, 3):
        eager_arguments, arguments = (_layer_arguments(backend.device, dtype, batch) for _ in range(2))
        expected = _layer(ops, *eager_arguments)
        actual = compiled(ops, *arguments)
        assert torch.equal(actual, expected)
        for mine, theirs in zip(arguments, eager_arguments, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.where(lambda backend: torch.float32 in backend.dtypes)
def test_compile_with_inductor(backend, ops):
    """The default compiler as well; it may fuse what stands around the operators, hence a tolerance."""
    torch.compiler.reset()
    eager_arguments, arguments = (_layer_arguments(backend.device, torch.float32) for _ in range(2))
    expected = _layer(ops, *eager_arguments)
    actual = torch.compile(_layer, fullgraph=True)(ops, *arguments)
    assert_close(actual, expected, 1e-5)
    for mine, theirs in zip(arguments, eager_arguments, strict=True):
        assert_close(mine, theirs, 1e-5)


@pytest.mark.where(lambda backend: backend.has_own_rules)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dynamic, mode", [(False, torch.enable_grad), (True, torch.inference_mode)])
def test_inductor_takes_optional_arguments_or_none(backend, ops, call, dynamic, mode):
    """The default compiler gives the operator's bits: with every optional argument, and with none."""
    everything = valid_arguments(call, backend.device, backend.dtypes[0])
    op = getattr(ops, op_name(call))
    for given in (everything, without_optional(call, everything)):
        torch.compiler.reset()
        compiled = torch.compile(lambda *args, **kwargs: op(*args, **kwargs) * 2, fullgraph=True, dynamic=dynamic)
        mine, theirs = ({n: copy(x) for n, x in given.items()} for _ in range(2))
        positional, keyword = split_arguments(call, mine)
        with mode():
            assert torch.equal(compiled(*positional, **keyword), call_op(ops, call, theirs) * 2)
        for name, value in theirs.items():
            assert not isinstance(value, torch.Tensor) or torch.equal(mine[name], value), name


def copy(value: object) -> object:
    return value.clone() if isinstance(value, torch.Tensor) else value


def test_both_overloads_by_one_name(backend, ops):
    """``torch.ops`` finds the overload: with a count, without, and with a None in its place."""
    arguments = valid_arguments("decode_attention", backend.device, backend.dtypes[0])
    count = arguments.pop("rereference_count")
    attention = getattr(torch.ops, backend.namespace).decode_attention
    expected = attention(**arguments)
    assert torch.equal(attention(**arguments, rereference_count=None), expected)
    arguments["phi"] = arguments["phi"] - 1e4  # out of the reference's range: it has to move
    attention(**arguments, rereference_count=count)
    assert count.sum() > 0


def test_vmap(backend, ops):
    """torch's own loop runs what writes nothing; the rest says why not."""
    dtype = backend.dtypes[0]
    arguments = {n: x for n, x in valid_arguments("decode_attention", backend.device, dtype).items()}
    count = arguments.pop("rereference_count")
    q = torch.stack([arguments["q"], arguments["q"] * 2])
    looped = torch.vmap(lambda q: call_op(ops, "decode_attention", arguments | {"q": q}))(q)
    for i in range(2):
        assert torch.equal(looped[i], call_op(ops, "decode_attention", arguments | {"q": q[i]}))
    with pytest.raises(RuntimeError, match="fdpp::decode_attention has no rule for vmap.*rereference_count"):
        torch.vmap(lambda q: call_op(ops, "decode_attention", arguments | {"q": q, "rereference_count": count}))(q)
    for call, name in (("add_rms_norm", "residual"), ("rope_append", "k_cache")):
        arguments = valid_arguments(call, backend.device, dtype)
        with pytest.raises(RuntimeError, match=rf"fdpp::{call} has no rule for vmap, because it writes {name}"):
            stacked = torch.stack([arguments[name]] * 2)
            torch.vmap(lambda x: call_op(ops, call, arguments | {name: x}))(stacked)  # noqa: B023


def test_flops_are_counted(backend, ops):
    """As torch counts them for its own products: 2 M N K, and twice that over the keys of each sequence."""
    dtype = backend.dtypes[0]
    x, weight = torch.ones(2, 3, 24, dtype=dtype), torch.ones(10, 24, dtype=dtype)
    for name in ("gemv", "flat_gemm", "linear"):
        with FlopCounterMode(display=False) as counter:
            getattr(ops, name)(x, weight)
        assert counter.get_total_flops() == 2 * 6 * 10 * 24
    for call, capacity in (("decode_attention", 24), ("decode_attention_paged", 24)):
        arguments = valid_arguments(call, backend.device, dtype)
        per_key = 4 * 3 * 6 * 64
        for changes, keys in (({"window": -1}, 20 + 9), ({"window": 12}, 15 + 9)):
            with FlopCounterMode(display=False) as counter:
                call_op(ops, call, arguments | changes)
            assert counter.get_total_flops() == per_key * keys
        with FakeTensorMode() as mode, FlopCounterMode(display=False) as counter:
            fake = {n: mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for n, t in arguments.items()}
            call_op(ops, call, fake | {"window": -1})
        assert counter.get_total_flops() == per_key * 2 * capacity


class _Attention(torch.nn.Module):
    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return torch.ops.fdpp.decode_attention(*args) * 2


@pytest.mark.where(lambda backend: backend.name == "cpu")
def test_ahead_of_time(backend, ops, tmp_path):
    """An exported module, compiled to a package and loaded from there, gives the bits of the operator."""
    arguments = valid_arguments("decode_attention", backend.device)
    args = tuple(arguments[name] for name in ("q", "k_cache", "v_cache", "cache_seqlens"))
    exported = torch.export.export(_Attention(), args)
    package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "attention.pt2"))
    assert torch.equal(torch._inductor.aoti_load_package(package)(*args), _Attention()(*args))
