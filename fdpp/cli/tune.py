"""Measure linear layers on this machine and write your dataflow table.

Your table wins over the shipped ones. What it holds already is kept, so a run that was interrupted goes on where it
stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fdpp._host import WEIGHT_FORMATS
from fdpp.cli.options import MAX_SIZE, integer, number
from fdpp.cli.progress import progress_bar
from fdpp.dtypes import NAMES
from fdpp.limits import MAX_THREADS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    layers = parser.add_mutually_exclusive_group(required=True)
    layers.add_argument("--model", metavar="M", help="the layers of a Hugging Face directory or id, or a GGUF file")
    layers.add_argument("--shapes", type=shape, nargs="+", metavar="NxK", help="weights of N rows and K columns")
    parser.add_argument("--device", default="cpu", help="device to measure (default: %(default)s)")
    parser.add_argument("--dtypes", choices=NAMES, nargs="+", default=["bfloat16"], help="default: bfloat16")
    parser.add_argument(
        "--formats",
        choices=WEIGHT_FORMATS,
        nargs="+",
        metavar="F",
        help="measure packed weights of these formats instead of weights in the dtypes",
    )
    parser.add_argument(
        "--rows",
        type=integer(1, MAX_SIZE),
        nargs="+",
        metavar="M",
        help="rows of the input (default: 12, 1 to 64)",
    )
    parser.add_argument("--seconds", type=number(0, 3600), default=0.5, help="per measurement (default: %(default)s)")
    parser.add_argument("--threads", type=integer(1, MAX_THREADS), metavar="N", help="default: torch's number")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: your table")


def run(arguments: argparse.Namespace) -> None:
    import torch

    from fdpp import tuning
    from fdpp.llm import open_model

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    shapes = arguments.shapes or open_model(arguments.model)[1].linear_shapes()
    with progress_bar() as progress:
        path = tuning.tune(
            shapes,
            device=arguments.device,
            dtypes=arguments.dtypes,
            rows=arguments.rows or tuning.ROWS,
            formats=arguments.formats or ("",),
            path=arguments.output,
            seconds=arguments.seconds,
            progress=progress,
        )
    print(path)


def shape(text: str) -> tuple[int, int]:
    """An argparse type: ``NxK``."""
    size = integer(1, MAX_SIZE)
    N, separator, K = text.lower().partition("x")
    if not separator:
        raise argparse.ArgumentTypeError(f"expected NxK, such as 4096x11008, got {text[:40]!r}")
    return size(N), size(K)
