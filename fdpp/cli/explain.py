"""Show which implementation a linear layer takes, and why, or how a model's decode step runs.

The layer is y[M, N] = x[M, K] @ weight[N, K].T, where M is the number of sequences that are decoded together. With
--step, the step of --model for --batch sequences is recorded, and what is replayed natively and what is called from
Python is told; of a step on a GPU, whether it can be captured in a graph.
"""

from __future__ import annotations

import argparse

from fdpp._host import WEIGHT_FORMATS
from fdpp.cli.options import MAX_SIZE, add_model, integer, load_model
from fdpp.errors import RequestError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    size = integer(1, MAX_SIZE)
    layer = parser.add_argument_group("layer")
    layer.add_argument("N", type=size, nargs="?", help="rows of the weight: output features")
    layer.add_argument("K", type=size, nargs="?", help="columns of the weight: input features")
    layer.add_argument("M", type=size, nargs="?", help="rows of the input: tokens")
    layer.add_argument("--format", choices=WEIGHT_FORMATS, default="", help="of a packed weight")
    step = parser.add_argument_group("step")
    step.add_argument("--step", action="store_true", help="explain a decode step instead of a layer")
    step.add_argument("--batch", type=integer(1, 1024), default=1, metavar="B", help="sequences (default: %(default)s)")
    add_model(parser, is_required=False)


def run(arguments: argparse.Namespace) -> None:
    sizes = arguments.N, arguments.K, arguments.M
    if arguments.step:
        if arguments.model is None or any(size is not None for size in sizes):
            raise RequestError("--step: expected --model, and neither N, K nor M")
        from fdpp.engine.explain_step import explain_step

        llm = load_model(arguments, max_batch_size=arguments.batch)
        print(explain_step(llm.model, arguments.batch, arguments.page_size))
        return
    if None in sizes:
        raise RequestError("expected N, K and M, or --step with --model")
    from fdpp import dataflow

    print(dataflow.explain(*sizes, arguments.dtype, arguments.device, arguments.format))
