"""End to end: tokens per second of fdpp against transformers, llama.cpp and vLLM on the same weights.

    python bench/decode.py                     # the demo's model
    python bench/decode.py --model MODEL       # a GGUF file, or a Hugging Face directory (then without llama.cpp)
    python bench/decode.py --python llama.cpp=/path/to/python --python vllm=/path/to/another/python
    python bench/decode.py --stored            # a quantised GGUF file, in fdpp and llama.cpp as it is stored
    python bench/decode.py --quick

Every engine gets the same weights in the same dtype (with --stored, transformers gets them dequantised), the same
prompts (as long as --contexts says), number of tokens (greedy, past any end-of-sequence token) and number of threads.
Each measurement is a process of its own, engines take turns, and the table shows medians over the rounds. Decode time
is that from the first new token to the last, so that neither the prompt nor the start of a request counts; vLLM does
not show it, there it is the time of a generation of N tokens less that of one token. Engines that are not installed
are left out, with a note.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import harness
from decode_engines import ENGINES
from decode_models import prepare, prompt_ids

from fdpp import demo_model, timing

COLUMNS = {
    "context": "d", "batch": "d", "engine": "s", "tokens/s": ".1f", "min": ".1f", "max": ".1f", "fdpp is x": ".2f",
    "of bound": ".0%", "same tokens": ".0%", "prompt tokens/s": ".0f",
}  # fmt: skip


def start_engine(job: dict, python: str) -> dict | str:
    """One measurement in a subprocess: its result, or why there is none."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"]), "TOKENIZERS_PARALLELISM": "false"}
    # The answer comes through a file: engines write what they like to stdout.
    with tempfile.NamedTemporaryFile("w+", suffix=".json") as answer:
        run = subprocess.run(
            [python, Path(__file__).with_name("decode_engines.py"), answer.name],
            input=json.dumps(job), text=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        text = answer.read()
    if run.returncode == 0 and text:
        return json.loads(text)
    lines = [line for line in run.stdout.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {run.returncode}"


def common_prefix(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """Mean share of the tokens before two generations part."""
    shares = []
    for a, b in zip(ours, theirs, strict=True):
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        shares.append(same / max(len(a), 1))
    return sum(shares) / len(shares)


def run_rounds(arguments: argparse.Namespace, models: dict) -> tuple[dict[str, list[dict]], dict[str, str]]:
    """Measure every engine once per round, in turn: the answers by engine, and why others are left out."""
    pythons = dict(item.split("=", 1) for item in arguments.python)
    prompts = [prompt_ids(models["directory"], max(arguments.batches), length) for length in arguments.contexts]
    answers: dict[str, list[dict]] = {}
    left_out: dict[str, str] = {}
    for number in range(1, arguments.rounds + 1):
        for engine in [name for name in arguments.engines if name not in left_out]:
            job = {
                "engine": engine, "models": models, "dtype": arguments.dtype, "threads": arguments.threads,
                "batches": arguments.batches, "prompts": prompts, "new_tokens": arguments.new_tokens,
            }  # fmt: skip
            answer = start_engine(job, pythons.get(engine, sys.executable))
            if isinstance(answer, str):
                left_out[engine] = answer
                answers.pop(engine, None)
                print(f"{engine} is left out: {answer}", flush=True)
                continue
            answers.setdefault(engine, []).append(answer | {"read_bandwidth": timing.memory_bandwidth()})
            rates = ", ".join(
                f"{r['context']} x batch {r['batch']}: {r['tokens_per_second']:.1f}" for r in answer["results"]
            )
            print(f"round {number} of {arguments.rounds}, {engine}: {rates} tokens/s", flush=True)
    return answers, left_out


def summarise(answers: dict[str, list[dict]], bandwidth: float) -> list[dict]:
    """One row per context, batch size and engine. fdpp's answers give ratio, agreement and the bytes of a step."""
    rows = []
    cases = [(result["context"], result["batch"]) for result in next(iter(answers.values()))[0]["results"]]
    for number, (context, batch) in enumerate(cases):
        results = {engine: [answer["results"][number] for answer in rounds] for engine, rounds in answers.items()}
        rates = {engine: [r["tokens_per_second"] for r in rounds] for engine, rounds in results.items()}
        for engine, values in rates.items():
            row = {
                "context": context,
                "batch": batch,
                "engine": f"{engine} {answers[engine][0]['version']}",
                "tokens/s": statistics.median(values),
                "min": min(values),
                "max": max(values),
                "prompt tokens/s": statistics.median(r["prompt_tokens_per_second"] for r in results[engine]),
            }
            if "fdpp" in results:
                ours = results["fdpp"][0]
                row["fdpp is x"] = statistics.median(rates["fdpp"]) / row["tokens/s"]
                row["of bound"] = row["tokens/s"] / batch * ours["bytes_per_step"] / bandwidth
                row["same tokens"] = common_prefix(ours["tokens"], results[engine][0]["tokens"])
            rows.append(row)
    return rows


def measure(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="fdpp-bench-") as directory:
        models = prepare(arguments.model, arguments.dtype, Path(directory), arguments.stored)
        answers, left_out = run_rounds(arguments, models)
    if not answers:
        sys.exit("no engine could be measured")
    bandwidth = statistics.median([answer["read_bandwidth"] for rounds in answers.values() for answer in rounds])
    rows = summarise(answers, bandwidth)
    conditions = {
        "model": Path(arguments.model).name, "stored": arguments.stored, "dtype": arguments.dtype,
        "threads": arguments.threads,
        "new_tokens": arguments.new_tokens, "rounds": arguments.rounds,
    }  # fmt: skip
    print("\n" + ", ".join(f"{key} {value}" for key, value in conditions.items()))
    print(f"read bandwidth {bandwidth / 1e9:.1f} GB/s")
    harness.print_table(rows, COLUMNS)
    harness.write_json(
        arguments.out / f"decode_{'stored_' if arguments.stored else ''}cpu.json",
        quick=arguments.quick,
        **conditions,
        read_bandwidth=bandwidth,
        rows=rows,
        left_out=left_out,
    )


def make_parser(description: str | None, engines: Iterable[str], rounds: int) -> argparse.ArgumentParser:
    """The options of benches that decode with several engines."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = demo_model.path()
    parser.add_argument(
        "--model",
        default=model,
        required=model is None,
        help="a GGUF file or a Hugging Face directory (default: the demo's)",
    )
    parser.add_argument("--engines", nargs="+", choices=engines, default=list(engines), help="default: all")
    parser.add_argument("--python", action="append", default=[], metavar="ENGINE=PATH", help="interpreter of an engine")
    parser.add_argument("--batches", type=lambda text: [int(b) for b in text.split(",")], default=[1, 8])
    parser.add_argument("--dtype", choices=harness.DTYPES, default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--quick", action="store_true", help="one round of few tokens")
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="directory of the results")
    return parser


def main() -> None:
    parser = make_parser(__doc__, ENGINES, rounds=5)
    parser.add_argument("--contexts", type=lambda text: [int(c) for c in text.split(",")], default=[32, 2048, 8000])
    parser.add_argument("--stored", action="store_true", help="decode a quantised GGUF file as it is stored")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.contexts, arguments.new_tokens = 1, [16], 32
    measure(arguments)


if __name__ == "__main__":
    main()
