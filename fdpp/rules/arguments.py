"""Arguments of an operator by their names, which is how the rules speak of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch._ops import OpOverload


def by_name(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call; the dispatcher leaves out those that have their default value."""
    names = (argument.name for argument in op._schema.arguments)
    return dict(zip(names, args, strict=False)) | kwargs


def tensors_of(op: OpOverload, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors among the arguments of a call.

    Raises:
        RuntimeError: there is none. Otherwise it is the operator itself that speaks of a None.
    """
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    if not tensors:
        raise RuntimeError(f"fdpp::{op._opname}: {op._schema.arguments[0].name} must be a tensor; got None")
    return tensors


def registered_name(op: OpOverload) -> str:
    """Name of the operator within its namespace, as ``torch.library.Library.impl`` takes it."""
    return op.name().partition("::")[2]


def is_mutable(op: OpOverload) -> bool:
    """Whether the operator writes into one of its arguments."""
    return any(argument.is_write for argument in op._schema.arguments)
