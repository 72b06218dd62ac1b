"""The engines that bench/decode.py compares, and the process that measures one of them.

    python bench/decode_engines.py ANSWER.json < JOB.json

A job names the engine, the models (see decode_models.prepare), dtype, threads, prompts (lists of token ids of equal
length, for each context), batches and the number of new tokens. This file may run in an interpreter that has its engine
and little else, so it imports nothing of the kind at the top.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path


class Fdpp:
    """fdpp.LLM."""

    def __init__(self, job: dict) -> None:
        from fdpp import LLM, __version__

        self.version = __version__
        self.llm = LLM(
            job["models"]["fdpp"],
            dtype=job["dtype"],
            num_threads=job["threads"],
            max_batch_size=max(job["batches"]),
            max_seq_len=context_length(job),
            generation_config=False,
        )

    def generate(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        completions = self.llm.generate(prompts, max_new_tokens=count, ignore_eos=True)
        self.decode_seconds = max(c.timings.decode_seconds for c in completions)
        return [c.token_ids for c in completions]

    def bytes_per_step(self, context: int, batch: int) -> int:
        return self.llm.model.step_bytes(context, batch)


class Transformers:
    """AutoModelForCausalLM.generate."""

    def __init__(self, job: dict) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(job["threads"])
        self.version = version("transformers")
        self.torch = torch
        dtype = getattr(torch, job["dtype"])
        self.model = AutoModelForCausalLM.from_pretrained(job["models"]["directory"], dtype=dtype)
        self.model.generation_config.eos_token_id = None

    def generate(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        ids, clock = self.torch.tensor(prompts), StepClock()
        out = self.model.generate(
            ids, attention_mask=self.torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0,
            streamer=clock,
        )  # fmt: skip
        self.decode_seconds = clock.decode_seconds
        return out[:, ids.shape[1] :].tolist()


class StepClock:
    """A streamer of transformers that looks at the clock: put() gets the prompt, then the tokens of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: object) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass

    @property
    def decode_seconds(self) -> float:
        return self.times[-1] - self.times[1]


class LlamaCpp:
    """llama.cpp through the C functions of llama-cpp-python; the argmax is numpy's."""

    def __init__(self, job: dict) -> None:
        import llama_cpp

        if job["models"]["gguf"] is None:
            raise ValueError("llama.cpp needs a GGUF model")
        self.version = version("llama-cpp-python")
        self.api, self.job, self.contexts = llama_cpp, job, {}
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(job["models"]["gguf"].encode(), options)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def context(self, batch: int):
        """The context for ``batch`` sequences; made once."""
        if batch not in self.contexts:
            options = self.api.llama_context_default_params()
            options.n_ctx = batch * -(-context_length(self.job) // 256) * 256
            options.n_batch = options.n_ctx
            options.n_ubatch = min(options.n_batch, 512)  # its default
            options.n_seq_max = batch
            options.n_threads = options.n_threads_batch = self.job["threads"]
            self.contexts[batch] = self.api.llama_init_from_model(self.model, options)
        return self.contexts[batch]

    def generate(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        context = self.context(len(prompts))
        self.api.llama_memory_clear(self.api.llama_get_memory(context), True)
        pending, position = prompts, 0
        generated: list[list[int]] = [[] for _ in prompts]
        for number in range(count):
            last = self.decode(context, pending, position)
            if number == 0:
                start = time.perf_counter()
            position += len(pending[0])
            pending = [[token] for token in last]
            for tokens, token in zip(generated, last, strict=True):
                tokens.append(token)
        self.decode_seconds = time.perf_counter() - start
        return generated

    def decode(self, context, pending: list[list[int]], position: int) -> list[int]:
        """Run the pending tokens of every sequence and return each one's most likely next token."""
        import numpy

        length = len(pending[0])
        batch = self.api.llama_batch_init(len(pending) * length, 0, 1)
        rows = [(sequence, i) for sequence in range(len(pending)) for i in range(length)]
        for row, (sequence, i) in enumerate(rows):
            batch.token[row], batch.pos[row] = pending[sequence][i], position + i
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
            batch.logits[row] = i == length - 1
        batch.n_tokens = len(rows)
        status = self.api.llama_decode(context, batch)
        self.api.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        last_rows = [row for row, (_, i) in enumerate(rows) if i == length - 1]
        logits = [self.api.llama_get_logits_ith(context, row) for row in last_rows]
        return [int(numpy.ctypeslib.as_array(values, (self.vocab_size,)).argmax()) for values in logits]


class Vllm:
    """vLLM's offline LLM, in one process, without prefix caching (every round pays for its prompt) or detokenising."""

    def __init__(self, job: dict) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{job['threads'] - 1}")
        import vllm

        self.version = vllm.__version__
        self.vllm = vllm
        self.llm = vllm.LLM(
            job["models"]["directory"],
            dtype=job["dtype"],
            max_model_len=context_length(job),
            max_num_seqs=max(job["batches"]),
            enable_prefix_caching=False,
            disable_log_stats=True,
        )

    def generate(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        sampling = self.vllm.SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        out = self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
        self.decode_seconds = None
        return [list(request.outputs[0].token_ids) for request in out]


# Each sets ``decode_seconds`` when it generates: from the first new token to the last, None where it cannot tell.
ENGINES = {"fdpp": Fdpp, "transformers": Transformers, "llama.cpp": LlamaCpp, "vllm": Vllm}


def context_length(job: dict) -> int:
    """Tokens that the longest sequence of the job reaches."""
    return max(len(prompts[0]) for prompts in job["prompts"]) + job["new_tokens"]


def clock(function: Callable, *arguments: object) -> tuple[float, object]:
    """Seconds that a call took, and its result."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def measure(job: dict) -> dict:
    """Load the job's engine and measure it, one result per context and batch size.

    Decode time is that from the first new token to the last, or where an engine does not show it, the time of a whole
    generation less that of a generation of one token. The time of one token gives the rate of prompts.
    """
    engine, count = ENGINES[job["engine"]](job), job["new_tokens"]
    results = []
    for prompts, batch in itertools.product(job["prompts"], job["batches"]):
        context, repeats = len(prompts[0]), 3 if len(prompts[0]) < 2000 else 1
        mine = prompts[:batch]
        engine.generate(mine, count)  # warm up
        one_token = statistics.median(clock(engine.generate, mine, 1)[0] for _ in range(repeats))
        whole, tokens = clock(engine.generate, mine, count)
        seconds = whole - one_token if engine.decode_seconds is None else engine.decode_seconds
        result = {
            "context": context, "batch": batch, "tokens": tokens,
            "prompt_tokens_per_second": batch * context / one_token,
            "tokens_per_second": batch * (count - 1) / seconds,
        }  # fmt: skip
        if isinstance(engine, Fdpp):
            result["bytes_per_step"] = engine.bytes_per_step(context + count // 2, batch)
        results.append(result)
    return {"version": engine.version, "results": results}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(measure(json.load(sys.stdin))))
