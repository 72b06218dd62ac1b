"""Fake kernels refuse what their operators refuse: on meta tensors, fake tensors, and while a model is compiled."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from .test_errors import CHANGES, WRONG, Wrong, is_allowed
from .valid import CALLS, call_op, required_tensors, valid_arguments

#: What only real tensors show.
REAL = {"empty storage"}


def on_meta(arguments: dict) -> dict:
    """The arguments without data; strides stay, which ``Tensor.to`` would change."""
    return {
        n: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta") if isinstance(x, torch.Tensor) else x
        for n, x in arguments.items()
    }


def fake_of(arguments: dict, dynamic: bool) -> tuple[FakeTensorMode, dict]:
    """The arguments as torch.compile has them while it traces; sizes are symbols where it is dynamic."""
    mode = FakeTensorMode(shape_env=ShapeEnv() if dynamic else None)
    return mode, {n: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for n, x in arguments.items()}


def generic():
    for call in CALLS:
        for name, value in valid_arguments(call, "cpu").items():
            for kind, change, came in CHANGES:
                if isinstance(value, torch.Tensor) and kind not in REAL and not is_allowed(call, name, kind):
                    if kind != "device":
                        wrong = Wrong(call, {name: change}, name, came)
                        yield pytest.param(wrong, id=f"{call}-{name}-{kind}")


WRONG_FOR_FAKES = [*generic(), *(pytest.param(wrong, id=str(wrong)) for wrong in WRONG)]


def changed(backend, wrong: Wrong) -> dict:
    arguments = valid_arguments(wrong.call, backend.device, backend.dtypes[0])
    return arguments | {name: change(arguments[name]) for name, change in wrong.changes.items()}


def message_of(function) -> str:
    with pytest.raises(RuntimeError) as caught:
        function()
    return str(caught.value).splitlines()[0]


@pytest.mark.where(lambda backend: backend.has_own_rules)
@pytest.mark.parametrize("wrong", WRONG_FOR_FAKES)
def test_the_same_message(backend, ops, wrong):
    """But for the place where the tensors lie, and which number of tiles a device has."""

    def plain(message: str) -> str:
        return re.sub(r" on (cpu|meta|cuda:\d+)|below \d+", "", message)

    arguments = changed(backend, wrong)
    real = plain(message_of(lambda: call_op(ops, wrong.call, arguments)))
    assert plain(message_of(lambda: call_op(ops, wrong.call, on_meta(arguments)))) == real
    for dynamic in (False, True):
        mode, fake = fake_of(arguments, dynamic)
        with mode:
            assert plain(message_of(functools.partial(call_op, ops, wrong.call, fake))) == real


@pytest.mark.where(lambda backend: backend.has_own_rules)
@pytest.mark.parametrize("call", CALLS)
def test_symbols_stay_symbols(backend, ops, call):
    """The checks add no guard: sizes that a caller leaves open stay open, in the result as well."""
    arguments = valid_arguments(call, backend.device, backend.dtypes[0])
    mode, fake = fake_of(arguments, dynamic=True)
    with mode:
        out = call_op(ops, call, fake)
    real = call_op(ops, call, arguments)
    assert not mode.shape_env.guards
    assert [size.node.hint if isinstance(size, torch.SymInt) else size for size in out.shape] == list(real.shape)
    assert any(isinstance(size, torch.SymInt) for size in out.shape)


@pytest.mark.where(lambda backend: backend.has_own_rules)
def test_sizes_without_a_hint(backend, ops):
    """A size that depends on data is checked when the operator runs."""
    weight = torch.ones(10, 24, dtype=backend.dtypes[0], device=backend.device)

    def function(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return ops.linear(x[mask], weight)

    x = torch.ones(5, 24, dtype=backend.dtypes[0], device=backend.device)
    mask = torch.tensor([True, False, True, True, False], device=backend.device)
    torch.compiler.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x, mask), function(x, mask))


@pytest.mark.where(lambda backend: backend.has_own_rules)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled(backend, ops, compiler, dynamic):
    """A wrong model fails while it is compiled, with the operator's message."""
    x = torch.ones(4, 24, dtype=backend.dtypes[0], device=backend.device)
    torch.compiler.reset()
    compiled = torch.compile(lambda x, w: ops.linear(x, w), fullgraph=True, dynamic=dynamic, backend=compiler)
    assert compiled(x, x).shape == (4, 4)
    with pytest.raises(RuntimeError, match=r"fdpp::linear: weight must have shape \[N, K\] = \[\*, 24\]"):
        compiled(x, x[:, :23])


@pytest.mark.where(lambda backend: backend.has_own_rules)
@pytest.mark.parametrize("call", CALLS)
def test_none(backend, ops, call):
    arguments = on_meta(valid_arguments(call, backend.device, backend.dtypes[0]))
    for name in required_tensors(call):
        with pytest.raises(RuntimeError, match=rf"fdpp::\w+: {name} must be a tensor; got None"):
            call_op(ops, call, arguments | {name: None})
