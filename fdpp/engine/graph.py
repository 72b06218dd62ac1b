"""The decode step of a batch in a CUDA graph: captured once, then launched in one piece."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from fdpp.errors import one_line

Step = Callable[[], Tensor]
"""One step of a batch. All that changes from step to step is in tensors that it reads and writes in place."""
Capture = Callable[[Step], Step]
"""From a step, without running it, to one that does the same and returns the same tensor each time."""

# A capture takes 10 to 30 ms for a model of 16 to 32 layers, and saves about 1 ms in each step that follows.
MIN_STEPS = 16


class GraphCapture:
    """A :data:`Capture` into graphs of a GPU of either vendor.

    A graph has the memory of its intermediate results to itself. When the graph is dropped, that memory goes back to
    torch, which frees it at the next capture or when memory is short.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        # One stream for all captures: libraries keep a workspace for each stream that they have seen.
        self._stream = torch.cuda.Stream(device)

    def __call__(self, step: Step) -> Step:
        graph = torch.cuda.CUDAGraph()
        # The outer context sets the stream back when a capture fails; torch's own does not. Calls of other threads
        # (thread_local) do not break a capture.
        with (
            torch.cuda.stream(self._stream),
            torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
        ):
            result = step()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


class StepGraph:
    """Runs a step again and again: eagerly once, which loads all that it needs, then from a graph.

    A capture that fails is reported by a warning; the step then goes on eagerly.

    Args:
        step: the step. The tensors that it uses must live as long as this object.
        capture: how to capture it.
    """

    def __init__(self, step: Step, capture: Capture) -> None:
        self._step = step
        self._capture: Capture | None = capture
        self._is_warm = False

    def __call__(self) -> Tensor:
        """Run the next step.

        Returns:
            what the step returns. The next call overwrites it.
        """
        if self._is_warm and self._capture is not None:
            self._step, self._capture = _captured(self._step, self._capture), None
        self._is_warm = True
        return self._step()


def _captured(step: Step, capture: Capture) -> Step:
    try:
        return capture(step)
    except RuntimeError as error:  # of CUDA, of memory, or of an operator that cannot be captured
        reason = one_line(error)
        warnings.warn(f"the decode step runs eagerly: it cannot be captured: {reason}", stacklevel=2)
        return step


def read_tokens(launched: Iterable[Tensor], ahead: int) -> Iterator[list[int]]:
    """The tokens of each step on the host.

    Args:
        launched: yields the tokens int64 ``[B]`` of each step, on their device, and launches the step when it is
            asked for them. The next step may overwrite them.
        ahead: the number of steps that are launched before the tokens of a step are waited for. With 1, a GPU
            computes while the host looks at what the step before has given.
    """
    pending: deque[_HostCopy] = deque()
    for tokens in launched:
        pending.append(_HostCopy(tokens))
        if len(pending) > ahead:
            yield pending.popleft().tolist()
    while pending:
        yield pending.popleft().tolist()


class _HostCopy:
    """A copy of a tensor on its way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor.to("cpu", non_blocking=True, copy=True)  # from a GPU: pinned memory of torch's cache
        self._arrival = None
        if tensor.is_cuda:
            self._arrival = torch.cuda.Event()
            self._arrival.record(torch.cuda.current_stream(tensor.device))

    def tolist(self) -> list[int]:
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._copy.tolist()
