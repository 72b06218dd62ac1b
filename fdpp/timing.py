"""Timing side by side with cold caches: what the tuner and the benches share."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from fdpp import library

COLD_FACTOR = 16  # copies of the operands together are this many times the last-level cache
MIN_GRAPH_CALLS = 20  # in a graph of a GPU's clock: what its start costs is spread over them
BANDWIDTH_BYTES = 512 * 2**20  # more than any cache holds, and room for it beside a model

Function = Callable[[int], object]


def last_level_cache_bytes(device: str = "cpu") -> int:
    """Size of the largest cache of a device: of the CPU's 32 MiB where the system does not tell, of a GPU its L2."""
    if device != "cpu":
        import torch

        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[text[-1]])
    return max(sizes, default=32 * 2**20)


def cold_copies(num_bytes: int, device: str = "cpu") -> int:
    """How many copies of an operand of ``num_bytes`` it takes for each to have left the caches when its turn comes."""
    wanted = COLD_FACTOR * last_level_cache_bytes(device)
    return 1 if num_bytes >= wanted else -(-wanted // max(1, num_bytes)) + 1


def memory_bandwidth(device: str = "cpu", repeats: int = 3) -> float:
    """Bytes per second that are read from memory, the bound of every decode step.

    Of a CPU: what torch's threads read, the best of ``repeats`` passes. Of a GPU: what torch's sum reads, the median.
    """
    if device == "cpu":
        return library.load().measure_read_bandwidth(BANDWIDTH_BYTES, repeats)
    import torch

    source = torch.randn(BANDWIDTH_BYTES // 4, dtype=torch.float32, device=device)
    read = {"sum": lambda _: source.sum()}
    times = interleave(read, copies=1, seconds=0, min_rounds=repeats, device=device)["sum"]
    return source.nbytes / statistics.median(times)


def interleave(
    candidates: Mapping[str, Function], *, copies: int, seconds: float, min_rounds: int = 5, device: str = "cpu"
) -> dict[str, list[float]]:
    """Time the candidates side by side, so that a machine that is slow for a while is slow for everybody.

    Args:
        candidates: name -> function of the number of the copy to work on, ``0 .. copies - 1``. On a GPU it must be
            possible to capture it in a graph: it waits for nothing.
        copies: how many copies there are; they are taken in turn, whoever runs.
        seconds: budget for all candidates together; at least ``min_rounds`` rounds are run whatever it is.
        min_rounds: see above.
        device: where the candidates run: ``cpu``, where a call is timed, or a GPU of torch's, where it is a graph of
            calls that takes the copies in turn.

    Returns:
        name -> seconds of a call, one value per round; the order within a round is random.
    """
    shuffle = random.Random(0).shuffle
    names = list(candidates)
    times: dict[str, list[float]] = {name: [] for name in names}
    clock = _call_clock if device == "cpu" else _graph_clock
    measures = {name: clock(candidates[name], copies) for name in names}
    copy = 0
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < min_rounds or time.perf_counter() < end:
        shuffle(names)
        for name in names:
            copy += 1
            times[name].append(measures[name](copy % copies))
        rounds += 1
    return times


def _call_clock(function: Function, copies: int) -> Callable[[int], float]:
    """Seconds of one call."""
    function(0)  # warm up code paths and allocators

    def measure(copy: int) -> float:
        start = time.perf_counter()
        function(copy)
        return time.perf_counter() - start

    return measure


def _graph_clock(function: Function, copies: int) -> Callable[[int], float]:
    """Seconds of one call among many in a graph, by the GPU's own clock: no launch from the host counts."""
    import torch

    calls = max(copies, MIN_GRAPH_CALLS)
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        function(0)  # code is loaded and attributes are set before the capture, where it is not allowed
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in range(calls):
            function(call % copies)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def measure(_: int) -> float:
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls

    return measure
