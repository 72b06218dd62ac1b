"""Attention of one new token over a KV cache: decode_attention against torch's scaled_dot_product_attention.

    python bench/attention.py                  # everything: some minutes
    python bench/attention.py --quick          # a look: one small model, short contexts
    python bench/attention.py --heads llama-3-8b --batches 1 --contexts 1024,8192

torch is measured as it likes it best: its own cache layout [B, H, S, D], and for grouped heads both with enable_gqa and
with keys and values that were expanded to all heads beforehand; the faster one counts. GB/s counts the grouped keys and
values once.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import harness
import torch

from fdpp import ops, timing

HEADS = {  # query heads, key/value heads, head dimension
    "llama-2-7b": (32, 32, 128),
    "llama-3-8b": (32, 8, 128),
    "smollm2-135m": (9, 3, 64),
}
CONTEXTS = (128, 512, 2048, 8192, 32768)
BATCHES = (1, 8)
COLUMNS = {
    "heads": "s", "dtype": "s", "batch": "d", "context": "d", "us": ".1f", "torch us": ".1f", "torch way": "s",
    "x torch": ".2f", "GB/s": ".1f", "share": ".0%", "torch share": ".0%",
}  # fmt: skip


def candidates(batch: int, context: int, heads: tuple[int, int, int], dtype: torch.dtype, copies: int):
    """The implementations to compare, as functions of the number of the cache's copy."""
    Hq, Hkv, D = heads
    q = torch.randn(batch, 1, Hq, D).to(dtype)
    kv = torch.randn(2, batch, context, Hkv, D).to(dtype)
    caches = [kv.clone() for _ in range(copies)]
    lengths = torch.full((batch,), context, dtype=torch.int32)
    attention = torch.nn.functional.scaled_dot_product_attention
    q_torch = q.transpose(1, 2)
    caches_torch = [kv.transpose(2, 3).contiguous() for _ in range(copies)]
    functions = {
        "fdpp": lambda i: ops.decode_attention(q, caches[i][0], caches[i][1], lengths),
        "torch": lambda i: attention(q_torch, caches_torch[i][0], caches_torch[i][1], enable_gqa=Hq != Hkv),
    }
    if Hq != Hkv:
        expanded = [cache.repeat_interleave(Hq // Hkv, dim=2) for cache in caches_torch]
        functions["torch expanded"] = lambda i: attention(q_torch, expanded[i][0], expanded[i][1])
    return functions


def measure(batch: int, context: int, name: str, dtype: str, seconds: float, bandwidth: float) -> dict:
    """One row: fdpp against the faster of torch's ways."""
    Hq, Hkv, D = HEADS[name]
    num_bytes = 2 * batch * context * Hkv * D * torch.empty((), dtype=harness.DTYPES[dtype]).element_size()
    copies = timing.cold_copies(num_bytes)
    functions = candidates(batch, context, HEADS[name], harness.DTYPES[dtype], copies)
    times = timing.interleave(functions, copies=copies, seconds=seconds)
    medians = {key: statistics.median(values) for key, values in times.items()}
    fdpp, (torch_way, torch_time) = medians.pop("fdpp"), min(medians.items(), key=lambda item: item[1])
    return {
        "heads": name, "dtype": dtype, "batch": batch, "context": context, "us": fdpp * 1e6,
        "torch us": torch_time * 1e6, "torch way": torch_way, "x torch": torch_time / fdpp,
        "GB/s": num_bytes / fdpp / 1e9, "share": num_bytes / fdpp / bandwidth,
        "torch share": num_bytes / torch_time / bandwidth, "rounds": len(times["fdpp"]),
    }  # fmt: skip


def plot(rows: list[dict], title: str, path: Path) -> None:
    """One panel per model: share of the read bandwidth over the context."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    integers = lambda text: [int(value) for value in text.split(",")]  # noqa: E731
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--dtypes", nargs="+", choices=harness.DTYPES, default=["bfloat16"])
    parser.add_argument("--batches", type=integers, default=list(BATCHES))
    parser.add_argument("--contexts", type=integers, default=list(CONTEXTS))
    parser.add_argument("--max-gib", type=float, default=2.0, help="skip larger caches (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="budget per row")
    parser.add_argument("--threads", type=int, help="default: torch's number")
    parser.add_argument("--quick", action="store_true", help="SmolLM2, two short contexts, batch 1, short budget")
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="directory of the results")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.heads, arguments.batches, arguments.contexts = ["smollm2-135m"], [1], [128, 512]
        arguments.seconds = 0.05
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    rows = []
    for name in arguments.heads:
        Hq, Hkv, D = HEADS[name]
        bandwidth = harness.read_bandwidth()
        for dtype in arguments.dtypes:
            for batch in arguments.batches:
                for context in arguments.contexts:
                    element = torch.empty((), dtype=harness.DTYPES[dtype]).element_size()
                    if 2 * batch * context * Hq * D * element <= arguments.max_gib * 2**30:
                        rows.append(measure(batch, context, name, dtype, arguments.seconds, bandwidth))
    harness.print_table(rows, COLUMNS)
    device = harness.environment()["device"]
    harness.write_json(arguments.out / "attention_cpu.json", rows=rows)
    title = f"Decode attention on {device}, {torch.get_num_threads()} threads, cold caches"
    plot(rows, title, arguments.out / "attention_cpu.png")


if __name__ == "__main__":
    main()
