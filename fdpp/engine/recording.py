"""A step as a list of its operators: what a CPU has in place of a graph.

fdpp's own operators on the CPU lie in the recordings of its library, which replays many of them as one call
(csrc/cpu/recording.h). Any other operator is called from Python again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fdpp import library
from fdpp.engine import recorded_aten

if TYPE_CHECKING:
    from fdpp._host import RecordedOperators

_READ_ON_THE_HOST = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)


class RecordedStep:
    """A step, recorded as a GPU captures one: nothing is computed, addresses and numbers stay what they are.

    Args:
        step: what to record. All that changes from step to step is in tensors that it reads and writes in place.

    Raises:
        RuntimeError: it reads a value of a tensor on the host.

    Attributes:
        pieces: how many pieces of work the library replays.
        others: the names of the operators that are called from Python, in order.
    """

    def __init__(self, step: Callable[[], Tensor]) -> None:
        recorder = _Recorder()
        try:
            with recorder:
                self._result = step()
        finally:
            recorder.undo()
        self._calls, self._kept, self.others = recorder.calls, recorder.kept, recorder.others
        self.pieces = sum(len(call) for call in self._calls if not isinstance(call, _Call))

    def __call__(self) -> Tensor:
        """Run the step.

        Returns:
            the tensor that the step returned, which each call overwrites.
        """
        for call in self._calls:
            call() if isinstance(call, _Call) else call.replay()
        return self._result

    def __str__(self) -> str:
        counts = Counter(self.others)
        python = ", ".join(f"{name} ({count})" for name, count in counts.items()) or "nothing"
        return f"{self.pieces} pieces of work are replayed; called from Python: {python}"

    def profile(self) -> dict[str, float]:
        """Run the step once more; the seconds of ``weights``, ``attention``, ``others``, and of what ``python`` calls.

        ``weights`` are the products with them, ``others`` all that the library replays beside them and attention.
        """
        seconds, start = [0.0, 0.0, 0.0], time.perf_counter()
        for call in self._calls:
            if isinstance(call, _Call):
                call()
            else:
                seconds = [sum(pair) for pair in zip(seconds, call.profile(), strict=True)]
        python = time.perf_counter() - start - sum(seconds)
        return dict(zip(("weights", "attention", "others", "python"), [*seconds, python], strict=True))


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call | RecordedOperators] = []
        self.kept: list[object] = []  # what the library's recordings point into
        self.others: list[str] = []
        self._written: list[tuple[Tensor, Tensor]] = []
        self._native: RecordedOperators | None = None  # takes the next operators

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch would import its compiler to keep it out of here, which takes two seconds."""
        return False

    def __torch_dispatch__(self, operator: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if operator in _READ_ON_THE_HOST:
            raise RuntimeError("the step reads a value of a tensor on the host")
        native = self._native or library.load().record()
        if operator.namespace == "fdpp" and all(tensor.is_cpu for tensor in _tensors((args, kwargs))):
            size = len(native)
            native.begin()
            try:
                result = operator(*args, **kwargs)
            finally:
                native.end()
            is_native = len(native) > size
        else:
            written = _written(operator, args, kwargs)
            self._written += [(tensor, tensor.clone()) for tensor in written]
            result = operator(*args, **kwargs)
            if not written and _is_view(result, args):
                return result
            is_native = recorded_aten.record(native, operator, args, kwargs, result)
        if not is_native:
            self._native = None
            self.calls.append(_Call(operator, args, kwargs, result))
            self.others.append(str(operator))
            return result
        if self._native is None:
            self._native = native
            self.calls.append(native)
        self.kept.append((args, kwargs, result))
        return result

    def undo(self) -> None:
        for tensor, before in reversed(self._written):
            tensor.copy_(before)
        self._written.clear()


class _Call:
    """A call that is made again, and leaves what it gives where it was the first time."""

    def __init__(self, operator: OpOverload, args: Any, kwargs: Any, result: Any) -> None:
        self._operator, self._args, self._kwargs = operator, args, kwargs
        self._results = list(_tensors(result))

    def __call__(self) -> None:
        for static, value in zip(self._results, _tensors(self._operator(*self._args, **self._kwargs)), strict=True):
            if static.data_ptr() != value.data_ptr():
                static.copy_(value)


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _written(operator: OpOverload, args: Any, kwargs: Any) -> list[Tensor]:
    arguments = operator._schema.arguments
    given = [*zip(arguments, args, strict=False), *((a, kwargs[a.name]) for a in arguments if a.name in kwargs)]
    return [value for argument, value in given if argument.is_write and isinstance(value, Tensor)]


def _is_view(result: Any, args: Any) -> bool:
    storages = {tensor.untyped_storage().data_ptr() for tensor in _tensors(args)}
    return all(tensor.untyped_storage().data_ptr() in storages for tensor in _tensors(result))
