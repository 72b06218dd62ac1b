"""Decoding beside a process that wants the same processors: how much of the quiet rate is left.

    python bench/neighbour.py                  # the demo's model
    python bench/neighbour.py --neighbours 2 --python llama.cpp=/path/to/python
    python bench/neighbour.py --quick

As bench/decode.py measures, once on a quiet machine and once beside busy processes of one thread each, in turn; fdpp
with all threads and with one. `kept` is the share of the quiet rate.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import harness
from decode import make_parser, start_engine
from decode_models import prepare, prompt_ids

ENGINES = ("fdpp", "llama.cpp", "transformers")
COLUMNS = {"batch": "d", "engine": "s", "threads": "d", "quiet": ".1f", "beside": ".1f", "kept": ".0%"}


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that never rest."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(arguments: argparse.Namespace, models: dict) -> tuple[list[dict], dict[str, str]]:
    """A row per batch, engine and number of threads, and why engines are left out."""
    pythons = dict(item.split("=", 1) for item in arguments.python)
    prompts = [prompt_ids(models["directory"], max(arguments.batches), 16)]
    cases = [(engine, arguments.threads) for engine in arguments.engines]
    cases += [(engine, 1) for engine in arguments.engines if engine == "fdpp" and arguments.threads > 1]
    rates: dict[tuple[str, int, int, int], list[float]] = {}
    left_out: dict[str, str] = {}
    for _ in range(arguments.rounds):
        for neighbours in (0, arguments.neighbours):
            for engine, threads in cases:
                if engine in left_out:
                    continue
                job = {
                    "engine": engine, "models": models, "dtype": arguments.dtype, "threads": threads,
                    "batches": arguments.batches, "prompts": prompts, "new_tokens": arguments.new_tokens,
                }  # fmt: skip
                with busy(neighbours):
                    answer = start_engine(job, pythons.get(engine, sys.executable))
                if isinstance(answer, str):
                    left_out[engine] = answer
                    print(f"{engine} is left out: {answer}", flush=True)
                    continue
                for result in answer["results"]:
                    key = result["batch"], engine, threads, neighbours
                    rates.setdefault(key, []).append(result["tokens_per_second"])
    rows = []
    for batch in arguments.batches:
        for engine, threads in cases:
            if engine in left_out:
                continue
            quiet, beside = (
                statistics.median(rates[batch, engine, threads, count]) for count in (0, arguments.neighbours)
            )
            row = {"batch": batch, "engine": engine, "threads": threads, "quiet": quiet, "beside": beside}
            rows.append(row | {"kept": beside / quiet})
    return rows, left_out


def main() -> None:
    parser = make_parser(__doc__, ENGINES, rounds=3)
    parser.add_argument("--neighbours", type=int, default=1, help="busy processes (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.new_tokens = 1, 32
    with tempfile.TemporaryDirectory(prefix="fdpp-bench-") as directory:
        rows, left_out = measure(arguments, prepare(arguments.model, arguments.dtype, Path(directory)))
    if not rows:
        sys.exit("no engine could be measured")
    conditions = {name: getattr(arguments, name) for name in ("dtype", "neighbours", "new_tokens", "rounds")}
    conditions["model"] = Path(arguments.model).name
    print("\n" + ", ".join(f"{key} {value}" for key, value in conditions.items()))
    harness.print_table(rows, COLUMNS)
    path = arguments.out / "neighbour_cpu.json"
    harness.write_json(path, quick=arguments.quick, **conditions, rows=rows, left_out=left_out)


if __name__ == "__main__":
    main()
