"""Timing side by side with cold caches: what the tuner and the benches share."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

COLD_FACTOR = 16  # copies of the operands together are this many times the last-level cache


def last_level_cache_bytes() -> int:
    """Size of the largest CPU cache, 32 MiB where the system does not tell."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[text[-1]])
    return max(sizes, default=32 * 2**20)


def cold_copies(num_bytes: int) -> int:
    """How many copies of an operand of ``num_bytes`` it takes for each to have left the caches when its turn comes."""
    return max(1, -(-COLD_FACTOR * last_level_cache_bytes() // max(1, num_bytes)) + 1)


def interleave(
    candidates: dict[str, Callable[[int], object]], *, copies: int, seconds: float, min_rounds: int = 5
) -> dict[str, list[float]]:
    """Time the candidates side by side, so that a machine that is slow for a while is slow for everybody.

    Args:
        candidates: name -> function of the number of the copy to work on, ``0 .. copies - 1``.
        copies: how many copies there are; they are taken in turn, whoever runs.
        seconds: budget for all candidates together; at least ``min_rounds`` rounds are run whatever it is.
        min_rounds: see above.

    Returns:
        name -> seconds of each call, one per round; the order within a round is random.
    """
    shuffle = random.Random(0).shuffle
    names = list(candidates)
    times: dict[str, list[float]] = {name: [] for name in names}
    copy = 0
    for name in names:  # warm up code paths and allocators
        candidates[name](copy % copies)
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < min_rounds or time.perf_counter() < end:
        shuffle(names)
        for name in names:
            function, copy = candidates[name], copy + 1
            start = time.perf_counter()
            function(copy % copies)
            times[name].append(time.perf_counter() - start)
        rounds += 1
    return times
