"""Decode rate of transformers' ``generate`` with and without ``fdpp.integrations.transformers.accelerate``.

    python bench/drop_in.py                          # the demo's model, batches of 1 and 8
    python bench/drop_in.py --compile                # both sides under torch.compile with a static cache, too
    python bench/drop_in.py --without linears norms  # fdpp without one of its parts, a row for each
    python bench/drop_in.py --alone attention cache  # fdpp with one of its parts
    python bench/drop_in.py --quick

Every way is a copy of one model in one process. They take turns, and the table shows medians over the rounds. Decode
time is that from the first new token to the last. ``same tokens`` is the share of the tokens before a way and plain
transformers part: in 16 bits two tokens can be equally likely.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from pathlib import Path

import harness
import torch
from decode import common_prefix
from decode_engines import StepClock
from decode_models import prompt_ids, write_directory
from transformers import AutoModelForCausalLM, CompileConfig, PreTrainedModel

from fdpp import demo_model
from fdpp.integrations.transformers import accelerate

PLAIN = "transformers"
PARTS = ("linears", "norms", "mlps", "attention", "cache")
COLUMNS = {"batch": "d", "way": "s", "tokens/s": ".1f", "min": ".1f", "max": ".1f", "x": ".2f", "same tokens": ".0%"}


def ways(arguments: argparse.Namespace) -> dict[str, dict[str, bool] | None]:
    """The options of accelerate by the name of a way; None for plain transformers."""
    found: dict[str, dict[str, bool] | None] = {PLAIN: None, "fdpp": {}}
    found |= {f"fdpp without {part}": {part: False} for part in arguments.without}
    return found | {f"fdpp, {part} alone": dict.fromkeys(PARTS, False) | {part: True} for part in arguments.alone}


class Way:
    """A copy of the model and how its ``generate`` is called."""

    def __init__(self, model: PreTrainedModel, options: dict[str, bool] | None, is_compiled: bool) -> None:
        self.model = copy.deepcopy(model)
        if options is not None:
            accelerate(self.model, **options)
        self.options: dict[str, object] = {}
        if is_compiled:
            compilation = CompileConfig(fullgraph=True)
            compilation._compile_all_devices = True  # transformers compiles on GPUs alone by itself
            self.options = {"cache_implementation": "static", "compile_config": compilation}

    def generate(self, prompts: list[list[int]], count: int) -> tuple[list[list[int]], float]:
        """The new tokens, and how many were made per second after the first ones."""
        ids, clock = torch.tensor(prompts), StepClock()
        out = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0,
            streamer=clock, **self.options,
        )  # fmt: skip
        return out[:, ids.shape[1] :].tolist(), len(prompts) * (count - 1) / clock.decode_seconds


def measure(arguments: argparse.Namespace, directory: str) -> list[dict[str, object]]:
    """A row for each batch and way."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, arguments.dtype))
    model.generation_config.eos_token_id = None
    known = {name: Way(model, options, False) for name, options in ways(arguments).items()}
    if arguments.compile:
        known |= {f"{name}, compiled": Way(model, options, True) for name, options in ((PLAIN, None), ("fdpp", {}))}
    rows: list[dict[str, object]] = []
    for batch in arguments.batches:
        prompts = prompt_ids(directory, batch, arguments.context)
        texts = {name: way.generate(prompts, arguments.new_tokens)[0] for name, way in known.items()}  # warms up, too
        rates: dict[str, list[float]] = {name: [] for name in known}
        for _ in range(arguments.rounds):
            for name, way in known.items():
                rates[name].append(way.generate(prompts, arguments.new_tokens)[1])
        plain = statistics.median(rates[PLAIN])
        rows += [
            {
                "batch": batch, "way": name, "tokens/s": statistics.median(found), "min": min(found), "max": max(found),
                "x": statistics.median(found) / plain, "same tokens": common_prefix(texts[PLAIN], texts[name]),
            }
            for name, found in rates.items()
        ]  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a GGUF file or a Hugging Face directory; default: the demo's")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--batches", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8])
    parser.add_argument("--context", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--new-tokens", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="torch.compile on both sides, too")
    parser.add_argument("--without", nargs="+", choices=PARTS, default=[], help="fdpp without these, one at a time")
    parser.add_argument("--alone", nargs="+", choices=PARTS, default=[], help="fdpp with one of these alone")
    parser.add_argument("--quick", action="store_true", help="few tokens, once")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    quick, full = argparse.Namespace(new_tokens=6, rounds=1), argparse.Namespace(new_tokens=96, rounds=5)
    harness.fill(arguments, quick if arguments.quick else full)
    model = arguments.model or demo_model.path()
    if model is None:
        raise SystemExit("the demo model is not installed: name a model with --model")
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="fdpp-bench-") as scratch:
        directory = Path(model)
        if not directory.is_dir():
            directory = Path(scratch) / "model"
            write_directory(Path(model), directory, arguments.dtype)
        rows = measure(arguments, str(directory))
    harness.print_table(rows, COLUMNS)
    settings = {name: getattr(arguments, name) for name in ("dtype", "context", "new_tokens", "rounds")}
    path = arguments.out / f"drop_in_{harness.slug()}.json"
    harness.write_json(path, quick=arguments.quick, model=Path(model).name, rows=rows, **settings)


if __name__ == "__main__":
    main()
