"""The linear layers of decoding over M: ImplA (gemv), ImplB (flat_gemm), ImplC (torch), and fdpp's choice among them.

    python bench/linear.py                     # everything on the CPU: some minutes
    python bench/linear.py --device cuda       # everything on the GPU
    python bench/linear.py --tune              # with a dataflow table that is measured first
    python bench/linear.py --quick             # a look: one small shape, few M
    python bench/linear.py --shapes 4096x4096 576x960 --dtypes bfloat16 --ms 1,4,16

Shapes are written KxN, as in the paper. Time per call is the median over interleaved rounds with cold caches, on a GPU
of calls in a CUDA graph. B is the best configuration of flat_gemm, fdpp what the dataflow table or its rule takes;
regret is how much longer that takes than the best of all. GB/s counts the weight, the input and the output once each;
shares are those of the read bandwidth measured in the same run.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import harness
import torch

from fdpp import dataflow, ops, timing, tuning

SHAPES = {  # (K, N); gate and up of an MLP are one weight, but in the paper's own list
    "paper": (
        (4096, 4096), (4096, 11008), (4096, 12288), (12288, 4096),
        (4096, 16384), (16384, 4096), (4096, 13696), (13696, 4096),
    ),
    "llama-2-7b": ((4096, 12288), (4096, 4096), (4096, 11008), (11008, 4096)),  # as in the paper
    "llama-2-13b": ((5120, 15360), (5120, 5120), (5120, 27648), (13824, 5120)),
    "llama-3-8b": ((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096), (4096, 128256)),
    "smollm2-135m": ((576, 960), (576, 576), (576, 3072), (1536, 576), (576, 49152)),
}  # fmt: skip
PAPER_MS = range(1, 17)


@dataclass(frozen=True)
class Defaults:
    """What is measured unless somebody asks for something else."""

    models: tuple[str, ...]
    dtypes: tuple[str, ...]
    ms: tuple[int, ...]
    seconds: float


DEFAULTS = {
    "cpu": Defaults(("paper", "smollm2-135m"), ("bfloat16", "float32"), tuning.ROWS, 0.5),
    "cuda": Defaults(
        ("paper", "llama-2-7b", "llama-2-13b", "llama-3-8b"), ("float16", "bfloat16"), (*tuning.ROWS, 96, 128), 0.2
    ),
}
IMPLS = {"A": "gemv", "B": "flat_gemm", "C": "aten"}
COLUMNS = {
    "dtype": "s", "K": "d", "N": "d", "M": "d", "A us": ".1f", "B us": ".1f", "C us": ".1f", "fdpp us": ".1f",
    "A share": ".0%", "B share": ".0%", "fdpp GB/s": ".1f", "fdpp share": ".0%", "A x torch": ".2f", "B x torch": ".2f",
    "fdpp x torch": ".2f", "takes": "s", "best": "s", "regret": ".1%",
}  # fmt: skip
SUMMARY = {
    "dtype": "s", "least share": ".0%", "median share": ".0%", "x torch": ".2f", "least x torch": ".2f",
    "regret": ".1%", "x one impl": ".2f",
}  # fmt: skip
STYLE = {"A": ("A: gemv", "o-"), "B": ("B: flat_gemm", "s-"), "C": ("C: torch", "^-"), "fdpp": ("fdpp.linear", "k--")}


def label(impl: str, config: int) -> str:
    """A, C, or B with its configuration: ``B3``."""
    letter = next(letter for letter, name in IMPLS.items() if name == impl)
    return f"{letter}{config}" if config >= 0 else letter


def measure(x: torch.Tensor, weights: list[torch.Tensor], bandwidth: float, seconds: float) -> dict:
    """One row: all implementations of one product side by side."""
    (M, K), N, device = x.shape, len(weights[0]), str(x.device)
    dtype = str(x.dtype).removeprefix("torch.")
    library, index = dataflow.library_of(device)
    found = tuning.candidates(library, index, M, dtype)
    functions = {label(*key): lambda i, fn=fn: fn(x, weights[i]) for key, fn in found.items()}
    functions["fdpp"] = lambda i: ops.linear(x, weights[i])
    times = timing.interleave(functions, copies=len(weights), seconds=seconds, device=device)
    medians = {name: statistics.median(values) for name, values in times.items()}
    medians["B"] = min((time for name, time in medians.items() if name.startswith("B")), default=None)
    choice = library.choice(dtype, N, K, M, index)
    candidates = {name: medians[name] for name in functions if name != "fdpp"}
    best = min(candidates, key=candidates.get)
    # The choice's own candidate is the same kernel. A rule leaves the configuration of B to the operator.
    taken = candidates.get(label(choice["impl"], choice["config"]), medians["fdpp"])
    num_bytes = x.element_size() * (N * K + M * K + M * N)
    row = {"dtype": dtype, "K": K, "N": N, "M": M}
    for name in STYLE:
        time = medians[name]
        row |= {
            f"{name} us": time and time * 1e6,
            f"{name} GB/s": time and num_bytes / time / 1e9,
            f"{name} share": time and num_bytes / time / bandwidth,
            f"{name} x torch": time and medians["C"] / time,
        }
    return row | {
        "takes": f"{label(choice['impl'], choice['config'])} by {choice['source']}", "best": best,
        "regret": max(0.0, taken / candidates[best] - 1), "bound us": num_bytes / bandwidth * 1e6,
        "rounds": len(times["fdpp"]),
        "medians us": {name: round(time * 1e6, 2) for name, time in candidates.items()},
    }  # fmt: skip


def measure_shape(K: int, N: int, dtype: str, ms: Iterable[int], seconds: float, device: str) -> list[dict]:
    """One row per M."""
    weight = torch.randn(N, K, device=device).div_(math.sqrt(K)).to(harness.DTYPES[dtype])
    weights = [weight, *(weight.clone() for _ in range(timing.cold_copies(weight.nbytes, device) - 1))]
    bandwidth = timing.memory_bandwidth(device)
    inputs = (torch.randn(M, K, device=device).to(weight.dtype) for M in ms)
    return [measure(x, weights, bandwidth, seconds) for x in inputs]


def inflections(times: dict[str, dict[int, float]]) -> tuple[int | None, int | None]:
    """The paper's M1 and M2 for one shape: the first M where B beats A, and the first one from there where C beats B.

    Args:
        times: implementation -> M -> time, None where it has no such M. None as a result stands for "never".
    """

    def beats(first: str, second: str, M: int) -> bool:
        a, b = times[first][M], times[second][M]
        return a is not None and (b is None or a < b)

    ms = sorted(times["A"])
    m1 = next((M for M in ms if beats("B", "A", M)), None)
    m2 = next((M for M in ms if M >= (m1 or ms[0]) and beats("C", "B", M)), None)
    return m1, m2


def geometric_mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return statistics.geometric_mean(values) if values else None


def summarise(rows: list[dict]) -> dict[str, object]:
    """The figures of one dtype that FlashDecoding++ is judged by. None where no such row was measured.

    ``share``: of the bandwidth, what the better of A and B reaches; ``x torch``: how fast fdpp's choice is. Both on the
    paper's shapes at M = 1..16. ``regret``: the largest anywhere. ``x one impl``: by how much fdpp's choice beats the
    best of A, B and C that serves every layer and M up to 64 of Llama-2-7B alone (geometric means).
    """
    paper = [row for row in rows if (row["K"], row["N"]) in SHAPES["paper"] and row["M"] in PAPER_MS]
    shares = [max(row["A share"], row["B share"]) for row in paper]
    ratios = [row["fdpp x torch"] for row in paper]
    llama = [row for row in rows if (row["K"], row["N"]) in SHAPES["llama-2-7b"] and row["B us"] is not None]
    single = [geometric_mean(row[f"{impl} us"] for row in llama) for impl in IMPLS] if llama else []
    return {
        "dtype": rows[0]["dtype"],
        "least share": min(shares, default=None), "median share": statistics.median(shares) if shares else None,
        "x torch": geometric_mean(ratios), "least x torch": min(ratios, default=None),
        "regret": max(row["regret"] for row in rows),
        "x one impl": min(single) / geometric_mean(row["fdpp us"] for row in llama) if llama else None,
    }  # fmt: skip


def plot(rows: list[dict], title: str, path: Path) -> None:
    """One panel per shape: time over M, with M1 and M2 marked and the bandwidth bound as a line."""
    plt = harness.pyplot()
    from matplotlib import ticker

    shapes = list(dict.fromkeys((row["K"], row["N"]) for row in rows))
    columns = min(5, len(shapes))
    lines = math.ceil(len(shapes) / columns)
    figure, axes = plt.subplots(lines, columns, figsize=(max(3.5 * columns, 9), 3 * lines + 0.8), squeeze=False)
    for axis in axes.flat[len(shapes) :]:
        axis.set_visible(False)
    for axis, (K, N) in zip(axes.flat, shapes, strict=False):
        mine = {row["M"]: row for row in rows if (row["K"], row["N"]) == (K, N)}
        times = {name: {M: row[f"{name} us"] for M, row in mine.items()} for name in STYLE}
        for name, (text, style) in STYLE.items():
            points = {M: time for M, time in times[name].items() if time is not None}
            axis.plot(list(points), list(points.values()), style, label=text, markersize=3.5, linewidth=1.2)
        bound = {M: row["bound us"] for M, row in mine.items()}
        axis.plot(list(bound), list(bound.values()), ":", color="gray", label="bandwidth bound")
        m1, m2 = inflections(times)
        for text, M, side, height in (("M1", m1, "left", 0.97), ("M2", m2, "right", 0.87)):
            if M is not None:
                axis.axvline(M, color="tab:red", alpha=0.4, linewidth=1)
                place = {"xycoords": ("data", "axes fraction"), "ha": side, "va": "top"}
                axis.annotate(f" {text}={M} ", (M, height), color="tab:red", fontsize=7, **place)
        axis.set(xscale="log", yscale="log", title=f"K={K}, N={N}", xlabel="M (rows)", ylabel="time (us)")
        # A grows with M; what lies far above the bound is of no interest.
        axis.set_ylim(0.8 * min(bound.values()), min(axis.get_ylim()[1], 20 * max(bound.values())))
        axis.set_xticks(list(bound), [str(M) for M in bound], fontsize=7, minor=False)
        axis.minorticks_off()
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%d"))
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=5)
    figure.suptitle(title)
    figure.tight_layout(rect=(0, 0.35 / figure.get_figheight(), 1, 1 - 0.1 / figure.get_figheight()))
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"wrote {path}")


def tune(shapes: Iterable[tuple[int, int]], arguments: argparse.Namespace) -> None:
    """Measure a dataflow table of these shapes beside the results; it is in force from then on."""
    table = arguments.out / f"dataflow_{harness.slug(arguments.device)}.csv"
    os.environ["FDPP_DATAFLOW_TABLE"] = str(table)
    tuning.tune(
        [(N, K) for K, N in shapes],
        device=arguments.device,
        dtypes=arguments.dtypes,
        rows=arguments.ms,
        path=table,
        seconds=arguments.seconds,
        progress=lambda done, total, what: print(f"tuning {done}/{total} {what}", flush=True),
    )


def shape(text: str) -> tuple[int, int]:
    K, N = text.lower().split("x")
    return int(K), int(N)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=DEFAULTS, default="cpu")
    parser.add_argument("--models", nargs="+", choices=SHAPES, help="whose shapes are measured")
    parser.add_argument("--shapes", type=shape, nargs="+", metavar="KxN", help="shapes instead of those of models")
    parser.add_argument("--dtypes", nargs="+", choices=harness.DTYPES)
    parser.add_argument("--ms", type=lambda text: [int(M) for M in text.split(",")])
    parser.add_argument("--seconds", type=float, help="budget per shape, dtype and M")
    parser.add_argument(
        "--tune", action="store_true", help="first measure a table, OUT/dataflow_DEVICE.csv, and use it"
    )
    parser.add_argument("--threads", type=int, help="of a CPU; default: torch's number")
    parser.add_argument("--quick", action="store_true", help="one small shape, few M, short budget")
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="directory of the results")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.shapes, arguments.ms, arguments.seconds = [(576, 960)], [1, 4, 16, 96], 0.05
    return harness.fill(arguments, DEFAULTS[arguments.device])


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = arguments.device
    shapes = arguments.shapes or list(dict.fromkeys(pair for model in arguments.models for pair in SHAPES[model]))
    if arguments.tune:
        tune(shapes, arguments)
    rows = []
    path = arguments.out / f"linear_{harness.slug(device)}"
    for dtype in arguments.dtypes:
        for K, N in shapes:
            new = measure_shape(K, N, dtype, arguments.ms, arguments.seconds, device)
            harness.print_table(new, COLUMNS)
            print(flush=True)
            rows += new
            harness.write_json(path.with_suffix(".json"), device, is_final=False, rows=rows)
    of_dtype = {dtype: [row for row in rows if row["dtype"] == dtype] for dtype in arguments.dtypes}
    summary = [summarise(mine) for mine in of_dtype.values()]
    harness.print_table(summary, SUMMARY)
    harness.write_json(path.with_suffix(".json"), device, quick=arguments.quick, summary=summary, rows=rows)
    how = f"{torch.get_num_threads()} threads" if device == "cpu" else "in a graph"
    for dtype, mine in of_dtype.items():
        title = f"Linear layers on {harness.device_name(device)}, {how}, {dtype}, cold caches"
        plot(mine, title, path.with_name(f"{path.name}_{dtype}.png"))


if __name__ == "__main__":
    main()
