"""Guessing ahead from the text itself (``speculate="ngram"``): editing, summarising and chat, with and without.

    python bench/speculate.py                  # the demo's model, beside transformers: some minutes
    python bench/speculate.py --quick

The prompts lie in bench/prompts, one file each; the part of a name before the underscore says what it asks for. One
sequence, greedy, in turn; medians of decoding, without the prompt. transformers guesses by prompt_lookup_num_tokens.
`same` is whether both ways gave the same tokens.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import harness
import torch
from decode_models import prepare

from fdpp import LLM, demo_model

PROMPTS = Path(__file__).parent / "prompts"
COLUMNS = {
    "prompt": "s", "prompt tokens": "d", "new tokens": "d", "plain": ".1f", "ngram": ".1f", "x": ".2f",
    "accepted": ".0%", "tokens/step": ".2f", "same": "s", "transformers": ".1f", "its look-up": ".1f", "its x": ".2f",
}  # fmt: skip
Rate = Callable[[list[int]], float]


def fdpp_rate(llm: LLM, count: int, found: dict) -> Rate:
    """Decode tokens/s of a prompt; what came last stands in ``found``."""

    def rate(prompt: list[int]) -> float:
        (found["completion"],) = llm.generate(prompt, max_new_tokens=count)
        return found["completion"].timings.decode_tokens_per_second

    return rate


def transformers_rate(model, end: int, count: int, **options: object) -> Rate:
    """As fdpp_rate: what a prompt alone takes comes off."""

    def seconds(prompt: list[int], new: int) -> tuple[float, int]:
        ids, start = torch.tensor([prompt]), time.perf_counter()
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, eos_token_id=end,
            pad_token_id=0, **(options if new > 1 else {}),
        )  # fmt: skip
        return time.perf_counter() - start, out.shape[1] - len(prompt)

    def rate(prompt: list[int]) -> float:
        (prompt_only, _), (whole, tokens) = seconds(prompt, 1), seconds(prompt, count)
        return (tokens - 1) / (whole - prompt_only)

    return rate


def measure(directory: str, arguments: argparse.Namespace) -> list[dict]:
    """A row per prompt."""
    from transformers import AutoModelForCausalLM

    options = {"dtype": arguments.dtype, "num_threads": arguments.threads, "generation_config": False}
    plain, ngram = LLM(directory, **options), LLM(directory, speculate="ngram", **options)
    found: dict[str, dict] = {"plain": {}, "ngram": {}}
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=harness.DTYPES[arguments.dtype])
    (end,) = plain.eos_token_ids
    ways = {
        "plain": fdpp_rate(plain, arguments.new_tokens, found["plain"]),
        "ngram": fdpp_rate(ngram, arguments.new_tokens, found["ngram"]),
        "transformers": transformers_rate(theirs, end, arguments.new_tokens),
        "its look-up": transformers_rate(theirs, end, arguments.new_tokens, prompt_lookup_num_tokens=7),
    }
    rows = []
    for path in sorted(PROMPTS.glob("*.txt")):
        prompt = plain.encode_chat([{"role": "user", "content": path.read_text()}])
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(arguments.rounds + 1):
            for name, rate in ways.items():
                value = rate(prompt)
                if number:  # a first one captures steps
                    rates[name].append(value)
        medians = {name: statistics.median(values) for name, values in rates.items()}
        ours, timings = found["plain"]["completion"], found["ngram"]["completion"].timings
        guessed, steps = timings.guessed_tokens, timings.decode_tokens - timings.accepted_tokens
        row = {
            "prompt": path.stem, "prompt tokens": len(prompt), "new tokens": len(ours.token_ids), **medians,
            "x": medians["ngram"] / medians["plain"],
            "accepted": timings.accepted_tokens / guessed if guessed else None,
            "tokens/step": timings.decode_tokens / steps,
            "same": "yes" if ours.token_ids == found["ngram"]["completion"].token_ids else "no",
            "its x": medians["its look-up"] / medians["transformers"],
        }  # fmt: skip
        rows.append(row)
        harness.print_table([row], COLUMNS)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = demo_model.path()
    parser.add_argument("--model", default=model, required=model is None, help="a GGUF file or a directory")
    parser.add_argument("--dtype", choices=harness.DTYPES, default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of few tokens")
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="directory of the results")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.new_tokens = 1, 40
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="fdpp-bench-") as directory:
        rows = measure(prepare(arguments.model, arguments.dtype, Path(directory))["directory"], arguments)
    conditions = {name: getattr(arguments, name) for name in ("dtype", "threads", "new_tokens", "rounds")}
    conditions["model"] = Path(arguments.model).name
    print("\n" + ", ".join(f"{key} {value}" for key, value in conditions.items()))
    harness.print_table(rows, COLUMNS)
    harness.write_json(arguments.out / "speculate_cpu.json", quick=arguments.quick, **conditions, rows=rows)


if __name__ == "__main__":
    main()
