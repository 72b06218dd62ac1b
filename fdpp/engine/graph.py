"""What GPUs have for a step: a graph that launches it in one piece, and copies that nobody waits for."""

from __future__ import annotations

import torch
from torch import Tensor

from fdpp.engine.slots import Step


class GraphCapture:
    """A :data:`fdpp.engine.slots.Capture` into graphs of a GPU of either vendor.

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


class HostCopy:
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
