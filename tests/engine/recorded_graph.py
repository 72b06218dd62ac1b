"""A graph without a GPU: the operators of a step are recorded, and a replay runs them on the same tensors again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def record(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture a step as a GPU does: nothing is computed yet, addresses and numbers stay what they are now.

    Raises:
        RuntimeError: the step reads a value of a tensor on the host.
    """
    recorder = _Recorder()
    try:
        with recorder:
            result = step()
    finally:
        recorder.undo()

    def replay() -> Tensor:
        recorder.replay()
        return result

    return replay


_READ_ON_THE_HOST = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, Any]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator in _READ_ON_THE_HOST:
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        for argument, value in [*zip(operator._schema.arguments, args, strict=False), *_named(operator, kwargs)]:
            if isinstance(value, Tensor) and argument.alias_info is not None and argument.alias_info.is_write:
                self.before.append((value, value.clone()))
        result = operator(*args, **kwargs)
        self.calls.append((operator, args, kwargs, result))
        return result

    def undo(self) -> None:
        for tensor, before in reversed(self.before):
            tensor.copy_(before)

    def replay(self) -> None:
        for operator, args, kwargs, result in self.calls:
            again = operator(*args, **kwargs)
            for static, value in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(static, Tensor) and static.data_ptr() != value.data_ptr():
                    static.copy_(value)


def _named(operator, kwargs):
    arguments = {argument.name: argument for argument in operator._schema.arguments}
    return [(arguments[name], value) for name, value in kwargs.items()]
