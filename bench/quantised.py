"""Products with packed weights of few bits, beside 16-bit weights of the same shape: time and share of the bandwidth.

    python bench/quantised.py
    python bench/quantised.py --shapes 4096x4096 --formats q4_0 q4_k --rows 1,8
    python bench/quantised.py --device cuda

Each call finds its weight in memory, not in a cache: copies of it take turns. ``of read`` is the bytes of the packed
weight over the median time, as a share of the read bandwidth of the same minute; ``x bfloat16`` is the time of fdpp's
linear layer with 16-bit weights over that of the packed ones.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

import harness
import torch

from fdpp import ops, timing
from fdpp.cli.tune import shape
from fdpp.formats import PACKED, packed_bytes
from fdpp.tuning import random_packed

SHAPES = [(4096, 4096), (11008, 4096), (4096, 11008)]
FORMATS = ("q4_0", "q4_1", "q8_0", "q4_k", "q6_k")
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
COLUMNS = {
    "format": "s", "N": "d", "K": "d", "M": "d", "us": ".0f", "GB/s": ".1f", "of read": ".0%", "bfloat16 us": ".0f",
    "x bfloat16": ".2f",
}  # fmt: skip


def measure(
    format: str, N: int, K: int, rows: list[int], seconds: float, bandwidth: float, device: str
) -> list[dict[str, object]]:
    """A row of the table for each number of rows of x."""
    layout, found = f"{format}:{N}", []
    copies = timing.cold_copies(packed_bytes(layout, K), device)
    packed = [random_packed(format, N, K, seed).to(device) for seed in range(copies)]
    options = {"dtype": torch.bfloat16, "device": device}
    plain = [torch.randn(N, K, **options) for _ in range(timing.cold_copies(2 * N * K, device))]
    for M in rows:
        x = torch.randn(M, K, **options)
        with torch.inference_mode():
            times = timing.interleave(
                {
                    "packed": lambda copy, x=x: ops.quantized_linear(x, packed[copy % len(packed)], layout),
                    "bfloat16": lambda copy, x=x: ops.linear(x, plain[copy % len(plain)]),
                },
                copies=math.lcm(copies, len(plain)),
                seconds=seconds,
                device=device,
            )
        packed_time, plain_time = (statistics.median(times[name]) for name in ("packed", "bfloat16"))
        rate = packed[0].nbytes / packed_time
        found.append(
            {
                "format": format, "N": N, "K": K, "M": M, "us": 1e6 * packed_time, "GB/s": rate / 1e9,
                "of read": rate / bandwidth, "bfloat16 us": 1e6 * plain_time, "x bfloat16": plain_time / packed_time,
            }
        )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shapes", type=shape, nargs="+", metavar="NxK", default=SHAPES)
    parser.add_argument("--formats", nargs="+", choices=PACKED, default=FORMATS)
    parser.add_argument("--rows", type=lambda text: [int(m) for m in text.split(",")], default=list(ROWS))
    parser.add_argument("--seconds", type=float, default=0.5, help="per row of the table")
    parser.add_argument("--quick", action="store_true", help="few rows, little time")
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="directory of the results")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.shapes, arguments.rows, arguments.seconds = [(512, 512)], [1, 8], 0.01
    torch.manual_seed(0)
    rows, bandwidths = [], []
    for format in arguments.formats:
        for N, K in arguments.shapes:
            bandwidths.append(timing.memory_bandwidth(arguments.device))
            rows += measure(format, N, K, arguments.rows, arguments.seconds, bandwidths[-1], arguments.device)
            print(f"{format} {N}x{K}: read bandwidth {bandwidths[-1] / 1e9:.1f} GB/s", flush=True)
    harness.print_table(rows, COLUMNS)
    harness.write_json(
        arguments.out / f"quantised_{harness.slug(arguments.device)}.json",
        arguments.device,
        quick=arguments.quick,
        read_bandwidths=bandwidths,
        rows=rows,
    )


if __name__ == "__main__":
    main()
