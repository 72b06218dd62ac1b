"""The linear layers of decoding over M: ImplA (gemv), ImplB (flat_gemm), ImplC (torch), and fdpp's choice among them.

    python bench/linear.py                     # everything: some minutes
    python bench/linear.py --quick             # a look: one small shape, few M
    python bench/linear.py --shapes 4096x4096 576x960 --dtypes bfloat16 --ms 1,4,16

Shapes are written KxN, as in the paper. Time per call is the median over interleaved rounds with cold caches; GB/s
counts the weight, the input and the output once each.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

import harness
import torch

from fdpp import native, ops, timing

PAPER_SHAPES = (
    (4096, 4096), (4096, 11008), (4096, 12288), (12288, 4096),
    (4096, 16384), (16384, 4096), (4096, 13696), (13696, 4096),
)  # fmt: skip
SMOLLM2_SHAPES = ((576, 960), (576, 576), (576, 3072), (1536, 576), (576, 49152))
MS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
COLUMNS = {
    "dtype": "s", "K": "d", "N": "d", "M": "d", "impl": "s", "us": ".1f", "GB/s": ".1f", "share": ".0%",
    "x torch": ".2f", "takes": "s",
}  # fmt: skip
CHOICE_OF = {"gemv": "A", "flat_gemm": "B", "aten": "C"}
STYLE = {"A": ("A: gemv", "o-"), "B": ("B: flat_gemm", "s-"), "C": ("C: torch", "^-"), "fdpp": ("fdpp.linear", "k--")}


def candidates(x: torch.Tensor, weights: list[torch.Tensor], dtype: str, configs: bool):
    """The implementations to compare, as functions of the number of the weight's copy; ``configs``: all that B has."""
    functions = {
        "A": lambda i: ops.gemv(x, weights[i]),
        "B": lambda i: ops.flat_gemm(x, weights[i]),
        "C": lambda i: torch.nn.functional.linear(x, weights[i]),
        "fdpp": lambda i: ops.linear(x, weights[i]),
    }
    for config in range(native.load().flat_gemm_configs(dtype)) if configs else ():
        functions[f"B{config}"] = lambda i, config=config: ops.flat_gemm(x, weights[i], config=config)
    return functions


def choice(dtype: str, N: int, K: int, M: int) -> str:
    """Which implementation ``fdpp.linear`` takes: A, B or C."""
    return CHOICE_OF[native.load().linear_choice(dtype, N, K, M)["impl"]]


def measure_shape(K: int, N: int, dtype: str, ms: list[int], configs: bool, seconds: float) -> list[dict]:
    """One row per M and implementation."""
    element = torch.empty((), dtype=harness.DTYPES[dtype]).element_size()
    copies = timing.cold_copies(K * N * element)
    weight = torch.randn(N, K).div_(math.sqrt(K)).to(harness.DTYPES[dtype])
    weights = [weight.clone() for _ in range(copies)]
    bandwidth = harness.bandwidth()
    rows = []
    for M in ms:
        x = torch.randn(M, K).to(harness.DTYPES[dtype])
        times = timing.interleave(candidates(x, weights, dtype, configs), copies=copies, seconds=seconds)
        torch_time = statistics.median(times["C"])
        for name, values in times.items():
            time = statistics.median(values)
            rate = element * (N * K + M * K + M * N) / time
            rows.append({
                "dtype": dtype, "K": K, "N": N, "M": M, "impl": name, "us": time * 1e6, "GB/s": rate / 1e9,
                "share": rate / bandwidth, "x torch": torch_time / time,
                "takes": choice(dtype, N, K, M) if name == "fdpp" else None, "rounds": len(values),
            })  # fmt: skip
    return rows


def inflections(times: dict[str, dict[int, float]]) -> tuple[int | None, int | None]:
    """The paper's M1 and M2 for one shape: the first M where B beats A, and the first one from there where C beats B.

    Args:
        times: implementation -> M -> time. None stands for "never".
    """
    ms = sorted(times["A"])
    m1 = next((M for M in ms if times["B"][M] < times["A"][M]), None)
    m2 = next((M for M in ms if M >= (m1 or ms[0]) and times["C"][M] < times["B"][M]), None)
    return m1, m2


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
        mine = [row for row in rows if (row["K"], row["N"]) == (K, N)]
        times = {name: {row["M"]: row["us"] for row in mine if row["impl"] == name} for name in STYLE}
        for name, (label, style) in STYLE.items():
            axis.plot(list(times[name]), list(times[name].values()), style, label=label, markersize=3.5, linewidth=1.2)
        bound = {row["M"]: row["us"] * row["share"] for row in mine if row["impl"] == "fdpp"}
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


def shape(text: str) -> tuple[int, int]:
    K, N = text.lower().split("x")
    return int(K), int(N)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=shape, nargs="+", metavar="KxN", default=[*PAPER_SHAPES, *SMOLLM2_SHAPES])
    parser.add_argument("--dtypes", nargs="+", choices=harness.DTYPES, default=["bfloat16", "float32"])
    parser.add_argument("--ms", type=lambda text: [int(M) for M in text.split(",")], default=list(MS))
    parser.add_argument("--configs", action="store_true", help="measure every tile configuration of flat_gemm, too")
    parser.add_argument("--seconds", type=float, default=0.5, help="budget per shape, dtype and M")
    parser.add_argument("--threads", type=int, help="default: torch's number")
    parser.add_argument("--quick", action="store_true", help="one small shape, few M, short budget")
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="directory of the results")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.shapes, arguments.ms, arguments.seconds = [(576, 960)], [1, 4, 16], 0.05
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    rows = []
    for dtype in arguments.dtypes:
        for K, N in arguments.shapes:
            new = measure_shape(K, N, dtype, arguments.ms, arguments.configs, arguments.seconds)
            harness.print_table(new, COLUMNS)
            print(flush=True)
            rows += new
    device = harness.device_name()
    harness.write_json(arguments.out / "linear_cpu.json", rows=rows)
    for dtype in arguments.dtypes:
        title = f"Linear layers on {device}, {torch.get_num_threads()} threads, {dtype}, cold caches"
        plot([row for row in rows if row["dtype"] == dtype], title, arguments.out / f"linear_cpu_{dtype}.png")


if __name__ == "__main__":
    main()
