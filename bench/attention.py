"""Attention of one new token over a KV cache: decode_attention against torch and the libraries that are installed.

    python bench/attention.py                  # everything on the CPU: some minutes
    python bench/attention.py --device cuda    # everything on the GPU
    python bench/attention.py --quick          # a look: one small model, short contexts
    python bench/attention.py --heads llama-3-8b --batches 1 --contexts 1024,8192

torch is measured as it likes it best: its own cache layout [B, H, S, D], and for grouped heads both with enable_gqa and
with keys and values that were expanded to all heads beforehand; on a GPU with each of its backends. The fastest counts.
GB/s counts the grouped keys and values once; the share is that of the read bandwidth measured in the same run.
Operands are cold, and GPU times are those of calls in a CUDA graph (fdpp/timing.py).
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path

import attention_ways
import harness
import torch

from fdpp import timing

HEADS = {  # query heads, key/value heads, head dimension
    "llama-2-7b": (32, 32, 128),
    "llama-3-8b": (32, 8, 128),
    "qwen2.5-7b": (28, 4, 128),
    "chatglm2-6b": (32, 2, 128),
    "smollm2-135m": (9, 3, 64),
}


@dataclass(frozen=True)
class Defaults:
    """What is measured unless somebody asks for something else."""

    heads: tuple[str, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    max_gib: float
    seconds: float


DEFAULTS = {
    "cpu": Defaults(("llama-2-7b", "llama-3-8b", "smollm2-135m"), (1, 8), (128, 512, 2048, 8192, 32768), 1.0, 1.0),
    "cuda": Defaults(
        ("llama-2-7b", "llama-3-8b", "chatglm2-6b"), (1, 4, 16, 64), (1024, 4096, 16384, 65536, 131072), 36.0, 0.3
    ),
}
COLUMNS = {
    "heads": "s", "dtype": "s", "batch": "d", "context": "d", "us": ".1f", "paged us": ".1f", "torch us": ".1f",
    "torch way": "s", "x torch": ".2f", "x flashinfer": ".2f", "x flash-attn": ".2f", "x running maximum": ".2f",
    "best splits": "s", "GB/s": ".1f", "share": ".0%", "torch share": ".0%",
}  # fmt: skip
TOLERANCE = 0.02  # of the largest value: how far the ways' results may lie apart


def prepare(
    problem: attention_ways.Problem, ways: dict[str, attention_ways.Way], device: str
) -> tuple[dict[str, attention_ways.Function], dict[str, str]]:
    """The ways that can do this problem, and why the others cannot. Those that compute something else are an error."""
    functions, left_out, expected = {}, {}, None
    for name, way in ways.items():
        try:
            function = way(problem)
            result = function(0).float()
            # Whether it can be timed: on a GPU, captured.
            timing.interleave({name: function}, copies=len(problem.caches), seconds=0, min_rounds=1, device=device)
        except (ImportError, RuntimeError) as error:
            left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        expected = result if expected is None else expected
        difference = ((result - expected).abs().max() / expected.abs().max()).item()
        if not difference <= TOLERANCE:
            raise SystemExit(f"{name} and {next(iter(functions))} differ by {difference:.1%} of the largest value")
        functions[name] = function
    return functions, left_out


def cache_bytes(batch: int, context: int, heads: str, dtype: str) -> int:
    """Bytes of the keys and values: what has to be read."""
    _, Hkv, D = HEADS[heads]
    return 2 * batch * context * Hkv * D * harness.DTYPES[dtype].itemsize


def measure(batch: int, context: int, heads: str, dtype: str, arguments: argparse.Namespace, bandwidth: float) -> dict:
    """One row: fdpp against everybody else, side by side."""
    (Hq, Hkv, D), device = HEADS[heads], arguments.device
    num_bytes = cache_bytes(batch, context, heads, dtype)
    copies = timing.cold_copies(num_bytes, device)
    options = {"device": device, "dtype": harness.DTYPES[dtype]}
    cache = torch.randn(2, batch, context, Hkv, D, **options)
    problem = attention_ways.Problem(
        q=torch.randn(batch, 1, Hq, D, **options),
        caches=[cache, *(cache.clone() for _ in range(copies - 1))],
        lengths=torch.full((batch,), context, dtype=torch.int32, device=device),
    )
    splits = {f"fdpp, {count} splits": attention_ways.fdpp(count) for count in arguments.splits}
    functions, left_out = prepare(problem, attention_ways.WAYS[device] | splits, device)
    times = timing.interleave(functions, copies=copies, seconds=arguments.seconds, device=device)
    medians = {name: statistics.median(values) for name, values in times.items()}

    def fastest(prefix: str) -> tuple[str | None, float | None]:
        found = {name: time for name, time in medians.items() if name.startswith(prefix)}
        return min(found.items(), key=lambda item: item[1], default=(None, None))

    fdpp = medians["fdpp"]
    ratio = lambda time: None if time is None else time / fdpp  # noqa: E731
    torch_way, torch_time = fastest("torch")
    return {
        "heads": heads, "dtype": dtype, "batch": batch, "context": context, "us": fdpp * 1e6,
        "paged us": medians["fdpp paged"] * 1e6 if "fdpp paged" in medians else None,
        "torch us": torch_time * 1e6, "torch way": torch_way, "x torch": torch_time / fdpp,
        **{f"x {name}": ratio(medians.get(name)) for name in ("flashinfer", "flash-attn")},
        "x running maximum": ratio(medians.get("fdpp running maximum")),
        "best splits": fastest("fdpp, ")[0],
        "GB/s": num_bytes / fdpp / 1e9, "share": num_bytes / fdpp / bandwidth,
        "torch share": num_bytes / torch_time / bandwidth, "rounds": len(times["fdpp"]),
        "medians us": {name: round(time * 1e6, 2) for name, time in medians.items()}, "left out": left_out,
    }  # fmt: skip


def plot(rows: list[dict], title: str, path: Path) -> None:
    """One panel per model: share of the bandwidth over the context."""
    plt = harness.pyplot()
    names = list(dict.fromkeys(row["heads"] for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(max(4.6 * len(names), 9), 4), squeeze=False, sharey=True)
    for axis, name in zip(axes[0], names, strict=True):
        mine = [row for row in rows if row["heads"] == name]
        for number, (dtype, batch) in enumerate(dict.fromkeys((row["dtype"], row["batch"]) for row in mine)):
            line = [row for row in mine if (row["dtype"], row["batch"]) == (dtype, batch)]
            contexts = [row["context"] for row in line]
            label, color = f"{dtype}, batch {batch}", f"C{number}"
            axis.plot(contexts, [100 * row["share"] for row in line], "o-", color=color, label=f"fdpp, {label}")
            axis.plot(contexts, [100 * row["torch share"] for row in line], "^:", color=color, label=f"torch, {label}")
        axis.axhline(100, color="gray", linestyle="--", label="bandwidth bound")
        Hq, Hkv, D = HEADS[name]
        title_of_panel = f"{name}: {Hq} query, {Hkv} KV heads of {D}"
        axis.set(xscale="log", title=title_of_panel, xlabel="context (tokens)", ylim=(0, None))
        ticks = sorted({row["context"] for row in mine})
        axis.set_xticks(ticks, [str(context) for context in ticks])
        axis.minorticks_off()
    axes[0][0].set_ylabel("share of measured read bandwidth (%)")
    axes[0][0].legend()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"wrote {path}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    integers = lambda text: [int(value) for value in text.split(",")]  # noqa: E731
    parser.add_argument("--device", choices=DEFAULTS, default="cpu")
    parser.add_argument("--heads", nargs="+", choices=HEADS)
    parser.add_argument("--dtypes", nargs="+", choices=harness.DTYPES, default=["bfloat16"])
    parser.add_argument("--batches", type=integers)
    parser.add_argument("--contexts", type=integers)
    parser.add_argument("--splits", type=integers, default=[], help="numbers of splits to try beside fdpp's own plan")
    parser.add_argument("--max-gib", type=float, help="skip larger caches")
    parser.add_argument("--seconds", type=float, help="budget per row")
    parser.add_argument("--threads", type=int, help="of a CPU; default: torch's number")
    parser.add_argument("--quick", action="store_true", help="SmolLM2, two short contexts, batch 1, short budget")
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="directory of the results")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.heads, arguments.batches, arguments.contexts = ["smollm2-135m"], [1], [128, 512]
        arguments.seconds = 0.05
    return harness.fill(arguments, DEFAULTS[arguments.device])


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows = []
    path = arguments.out / f"attention_{harness.slug(arguments.device)}.json"
    for heads in arguments.heads:
        bandwidth = timing.memory_bandwidth(arguments.device)
        for dtype in arguments.dtypes:
            for batch in arguments.batches:
                for context in arguments.contexts:
                    if cache_bytes(batch, context, heads, dtype) <= arguments.max_gib * 2**30:
                        rows.append(measure(batch, context, heads, dtype, arguments, bandwidth))
                        harness.write_json(path, arguments.device, is_final=False, bandwidth=bandwidth, rows=rows)
    harness.print_table(rows, {key: COLUMNS[key] for key in COLUMNS if any(row[key] is not None for row in rows)})
    for name, why in sorted({reason for row in rows for reason in row["left out"].items()}):
        print(f"left out where it cannot run: {name}: {why}")
    harness.write_json(path, arguments.device, quick=arguments.quick, bandwidth=bandwidth, rows=rows)
    how = f"{torch.get_num_threads()} threads" if arguments.device == "cpu" else "in a graph"
    title = f"Decode attention on {harness.device_name(arguments.device)}, {how}, cold caches"
    plot(rows, title, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
