"""Operators have no gradients and say so; what they write is known to autograd."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from .valid import CALLS, call_op, overloads, valid_arguments

FLOATING = [
    pytest.param(call, name, id=f"{call}-{name}")
    for call in CALLS
    for name, value in valid_arguments(call, "cpu").items()
    if isinstance(value, torch.Tensor) and value.is_floating_point()
]
WRITTEN = [
    pytest.param(call, argument.name, id=f"{call}-{argument.name}")
    for call in CALLS
    for argument in overloads(call)[-1]._schema.arguments
    if argument.is_write
]


def refuses(name: str):
    return pytest.raises(RuntimeError, match=rf"fdpp::\w+ has no gradient, and {name} wants one.*no_grad")


@pytest.mark.where(lambda backend: backend.has_own_rules)
@pytest.mark.parametrize("call, name", FLOATING)
def test_a_gradient_is_refused(backend, ops, call, name):
    """Of every floating tensor of every operator, in every mode; without one the operator runs."""
    arguments = valid_arguments(call, backend.device, backend.dtypes[0])
    x = arguments[name]

    def function(x: torch.Tensor) -> torch.Tensor:
        return call_op(ops, call, arguments | {name: x}).float().sum()

    with refuses(name):
        function(x.clone().requires_grad_())
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        with refuses(name):
            transform(function)(x)
    with refuses(name):
        torch.func.jvp(function, (x,), (x,))
    with torch.no_grad(), forward_ad.dual_level(), refuses(name):
        function(forward_ad.make_dual(x, torch.ones_like(x)))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert not function(x.clone().requires_grad_()).requires_grad


def test_a_layer_before_does_not_train_in_silence(backend, dtype, ops):
    layer = torch.nn.Linear(24, 24, device=backend.device, dtype=dtype)
    with refuses("x"):
        ops.linear(layer(torch.ones(4, 24, device=backend.device, dtype=dtype)), layer.weight.detach())


@pytest.mark.parametrize("call, name", WRITTEN)
def test_writes_are_versions(backend, ops, call, name):
    """As after an operator of torch in place: views and their base have a new version."""
    arguments = valid_arguments(call, backend.device, backend.dtypes[0])
    written = [a.name for a in overloads(call)[-1]._schema.arguments if a.is_write]
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        before = {n: x._version for n, x in arguments.items() if isinstance(x, torch.Tensor)}
        with mode():
            call_op(ops, call, arguments | {name: arguments[name].view(arguments[name].shape)})
        for other, version in before.items():
            assert (arguments[other]._version > version) == (other in written), (mode, other)


@pytest.mark.parametrize("call, name", WRITTEN)
def test_inference_tensors_are_written_in_inference_mode_only(backend, ops, call, name):
    with torch.inference_mode():
        arguments = valid_arguments(call, backend.device, backend.dtypes[0])
        call_op(ops, call, arguments)
    normal = valid_arguments(call, backend.device, backend.dtypes[0]) | {name: arguments[name]}
    before = arguments[name].clone()
    with pytest.raises(RuntimeError, match=rf"{name} must be writable in place.*inference"):
        call_op(ops, call, normal)
    assert torch.equal(arguments[name], before)


def test_backward_through_what_was_written(backend, ops):
    """A tensor that backward needs was overwritten: an error, not a wrong gradient."""
    dtype = backend.dtypes[0]
    p = torch.ones(24, dtype=dtype, device=backend.device, requires_grad=True)
    residual = torch.ones(2, 24, dtype=dtype, device=backend.device)
    y = residual * p
    ops.add_rms_norm(torch.ones_like(residual), residual, torch.ones_like(p).detach(), 1e-5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.where(lambda backend: backend.has_own_rules)
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled(backend, ops, compiler):
    """Compiled code refuses as well, and runs where no gradient is wanted."""
    dtype = backend.dtypes[0]
    x, weight = torch.ones(4, 24, dtype=dtype), torch.ones(10, 24, dtype=dtype)
    torch.compiler.reset()
    compiled = torch.compile(lambda x, weight: ops.linear(x, weight), fullgraph=True, backend=compiler)
    assert compiled(x, weight).shape == (4, 10)
    with pytest.raises(RuntimeError, match="fdpp::linear has no gradient, and weight wants one"):
        compiled(x, weight.clone().requires_grad_())
    with torch.no_grad():
        assert torch.equal(compiled(x, weight.clone().requires_grad_()), compiled(x, weight))
