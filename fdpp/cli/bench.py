"""Measure how fast fdpp decodes a model.

Comparisons with other engines, and of the operators, are the scripts in bench/ of the source tree.
"""

from __future__ import annotations

import argparse
import statistics

from fdpp.cli.options import MAX_TOKENS, add_model, integer, load_model
from fdpp.cli.summary import describe_softmax, render_summary
from fdpp.timing import memory_bandwidth

TEXT = "The quick brown fox jumps over the lazy dog. "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    group = parser.add_argument_group("measurement")
    tokens, default = integer(1, MAX_TOKENS), "default: %(default)s"
    group.add_argument("--batch", type=integer(1, 1024), default=1, metavar="B", help=default)
    group.add_argument("--prompt-tokens", type=tokens, default=64, metavar="N", help=default)
    group.add_argument("--new-tokens", type=tokens, default=64, metavar="N", help=default)
    group.add_argument("--rounds", type=integer(1, 1000), default=3, metavar="R", help=default)


def run(arguments: argparse.Namespace) -> None:
    llm = load_model(arguments, max_batch_size=arguments.batch, generation_config=False)
    (warm_up,) = llm.generate(TEXT, max_new_tokens=2, ignore_eos=True)
    ids = warm_up.prompt_token_ids
    prompt = (ids * (arguments.prompt_tokens // len(ids) + 1))[: arguments.prompt_tokens]
    # Equal prompts, and equal beginnings, would be computed once.
    prompts = [[row % llm.model.vocab_size, *prompt[1:]] for row in range(arguments.batch)]
    bytes_per_step = llm.model.step_bytes(arguments.prompt_tokens + arguments.new_tokens // 2, arguments.batch)
    rates = []
    for number in range(1, arguments.rounds + 1):
        completions = llm.generate(prompts, max_new_tokens=arguments.new_tokens, ignore_eos=True)
        timings = [completion.timings for completion in completions]
        rates.append(sum(t.decode_tokens for t in timings) / max(t.decode_seconds for t in timings))
        print(f"round {number} of {arguments.rounds}, batch {arguments.batch}")
        softmax = describe_softmax(llm, timings)
        print(render_summary(timings, bytes_per_step, memory_bandwidth(arguments.device), softmax=softmax), flush=True)
    if llm.device.type == "cpu":
        from fdpp.engine.explain_step import profile_step

        context = min(arguments.prompt_tokens + arguments.new_tokens // 2, llm.max_seq_len)
        print(f"step     {profile_step(llm.model, arguments.batch, context, llm.page_size)}")
    print(f"median   {statistics.median(rates):.1f} decode tokens/s ({min(rates):.1f}..{max(rates):.1f})")
