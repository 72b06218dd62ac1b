"""The decode step, whole: fdpp eager and captured, beside transformers, on random weights.

    python bench/step.py                                  # on a GPU: Llama 2 7B, Llama 3 8B, Llama 3.2 1B
    python bench/step.py --device cpu                     # SmolLM2 135M, Llama 3.2 1B
    python bench/step.py --models llama-2-7b --batches 1 --contexts 1024

A step appends one token to each sequence, whose cache holds `context` tokens, and takes the likeliest next one. Speed
does not depend on what weights and cache hold, so both are random and nothing is downloaded. `bound` is the time that
reading the weights and the cache once takes at the bandwidth measured in the same run; share is bound over captured.
On a CPU the captured step is split into products with weights, attention, all else that is replayed, and Python.
transformers runs as its users find it: its own eager model with torch's attention and a dynamic cache.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import harness
import torch

from fdpp import timing
from fdpp.engine import kv_cache
from fdpp.engine.graph import GraphCapture
from fdpp.engine.model import Model
from fdpp.engine.recording import RecordedStep
from fdpp.engine.sampling import greedy
from fdpp.models import family_of

MODELS = {  # vocabulary, hidden, intermediate, layers, query heads, KV heads
    "llama-2-7b": (32000, 4096, 11008, 32, 32, 32),
    "llama-3-8b": (128256, 4096, 14336, 32, 32, 8),
    "llama-3.2-1b": (128256, 2048, 8192, 16, 32, 8),
    "smollm2-135m": (49152, 576, 1536, 30, 9, 3),
}
PARTS = ("weights", "attention", "others", "python")  # of a step on a CPU
COLUMNS = {
    "model": "s", "batch": "d", "context": "d", "bound ms": ".2f", "captured ms": ".2f", "share": ".0%",
    "tokens/s": ".0f", "eager ms": ".2f", "transformers ms": ".2f", "x transformers": ".2f",
    **{f"{part} ms": ".2f" for part in PARTS},
}  # fmt: skip


def random_model(name: str, dtype: torch.dtype, device: str) -> Model:
    """A model of that shape with random weights."""
    vocabulary, hidden, inner, layers, heads, kv_heads = MODELS[name]
    config = {
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "max_position_embeddings": 1 << 17,
    }  # fmt: skip
    model = family_of(config).build(config, ())
    for weight in model.weights():
        values = torch.ones(weight.shape, dtype=dtype, device=device)
        weight.tensor = values if len(weight.shape) == 1 else values.normal_(std=weight.shape[1] ** -0.5)
    return model


def seconds(step: Callable[[], object], count: int) -> float:
    """Of one step: the median over three rounds of ``count`` steps, the host's time included."""
    rounds, synchronize = [], torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(3):
        synchronize()
        start = time.perf_counter()
        for _ in range(count):
            step()
        synchronize()
        rounds.append((time.perf_counter() - start) / count)
    return statistics.median(rounds)


@torch.inference_mode()
def measure_fdpp(model: Model, batch: int, context: int, steps: int) -> dict[str, float]:
    """Seconds of a step, and the bytes that it reads."""
    device = model.device
    length = context + 8 * steps + 1
    cache = kv_cache.allocate(model.attentions, [length] * batch, model.dtype, device)
    for tensor in (*cache.keys, *cache.values):
        tensor.normal_()
    model.reserve(length)
    tokens = torch.zeros(batch, dtype=torch.int64, device=device)
    seqlens = torch.full((batch,), context, dtype=torch.int32, device=device)
    positions = seqlens[:, None] - 1

    def step() -> torch.Tensor:
        positions.add_(1)
        seqlens.add_(1)
        return tokens.copy_(greedy(model.step(tokens, positions, seqlens, cache)))

    step()
    eager = seconds(lambda: step().tolist(), steps)  # as a loop without a graph has to: it looks at each token
    captured = RecordedStep(step) if device.type == "cpu" else GraphCapture(device)(step)
    times = {"eager": eager, "captured": seconds(captured, steps), "bytes": model.step_bytes(context, batch)}
    if isinstance(captured, RecordedStep):
        profiles = [captured.profile() for _ in range(steps)]
        times |= {part: statistics.median(profile[part] for profile in profiles) for part in PARTS}
    return times


@torch.inference_mode()
def measure_transformers(name: str, dtype: torch.dtype, device: str, cases: list[tuple[int, int]]) -> list[float]:
    """Seconds of a step for each (batch, context)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary, hidden, inner, layers, heads, kv_heads = MODELS[name]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=1 << 17, dtype=dtype,
    )  # fmt: skip
    with torch.device(device):
        model = LlamaForCausalLM(config).to(dtype).eval()
    result = []
    for batch, context in cases:
        prompt = torch.randint(vocabulary, (batch, context), device=device)
        last = [model(prompt, use_cache=True, logits_to_keep=1)]  # what goes from step to step

        def step(last: list = last) -> None:
            token = last[0].logits[:, -1:].argmax(-1)
            token.tolist()
            last[0] = model(token, past_key_values=last[0].past_key_values, use_cache=True)

        step()
        result.append(seconds(step, 8))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    integers = lambda text: [int(value) for value in text.split(",")]  # noqa: E731
    parser.add_argument("--device", default="cuda", help="a GPU of torch's, or cpu (default: %(default)s)")
    parser.add_argument("--models", nargs="+", choices=MODELS)
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--batches", type=integers, default=[1, 8, 32])
    parser.add_argument("--contexts", type=integers, default=[1024, 8192])
    parser.add_argument("--steps", type=int, default=24, help="of a round")
    parser.add_argument("--max-gib", type=float, default=80.0, help="skip larger caches")
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few steps")
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="directory of the results")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps = 2
    dtype, device = harness.DTYPES[arguments.dtype], arguments.device
    small = ["smollm2-135m", "llama-3.2-1b"]
    models = arguments.models or (small if device == "cpu" else [name for name in MODELS if name != small[0]])
    bandwidth, rows = timing.memory_bandwidth(device), []
    path = arguments.out / f"step_{harness.slug(device)}.json"
    for name in models:
        _, hidden, _, layers, heads, kv_heads = MODELS[name]
        token_bytes = 2 * layers * kv_heads * hidden // heads * dtype.itemsize
        cases = [
            (batch, context)
            for context in arguments.contexts
            for batch in arguments.batches
            if batch * context * token_bytes <= arguments.max_gib * 2**30
        ]
        model = random_model(name, dtype, device)
        ours = [measure_fdpp(model, *case, arguments.steps) for case in cases]
        del model
        theirs = [None] * len(cases)
        if not arguments.no_transformers:
            theirs = measure_transformers(name, dtype, device, cases)
        for (batch, context), time_of, other in zip(cases, ours, theirs, strict=True):
            bound = time_of["bytes"] / bandwidth
            rows.append({
                "model": name, "dtype": arguments.dtype, "batch": batch, "context": context, "bound ms": bound * 1e3,
                "captured ms": time_of["captured"] * 1e3, "eager ms": time_of["eager"] * 1e3,
                "share": bound / time_of["captured"], "tokens/s": batch / time_of["captured"],
                "transformers ms": other and other * 1e3, "x transformers": other and other / time_of["captured"],
                **{f"{part} ms": time_of[part] * 1e3 for part in PARTS if part in time_of},
            })  # fmt: skip
        harness.write_json(path, device, is_final=False, bandwidth=bandwidth, rows=rows)
    harness.print_table(rows, COLUMNS)
    harness.write_json(path, device, quick=arguments.quick, bandwidth=bandwidth, rows=rows)


if __name__ == "__main__":
    main()
