"""Show which implementation a linear layer takes, and why.

The layer is y[M, N] = x[M, K] @ weight[N, K].T, where M is the number of sequences that are decoded together.
"""

from __future__ import annotations

import argparse

from fdpp.cli.options import MAX_SIZE, integer
from fdpp.dtypes import NAMES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    size = integer(1, MAX_SIZE)
    parser.add_argument("N", type=size, help="rows of the weight: output features")
    parser.add_argument("K", type=size, help="columns of the weight: input features")
    parser.add_argument("M", type=size, help="rows of the input: tokens")
    parser.add_argument("--device", default="cpu", help="device that it runs on (default: %(default)s)")
    parser.add_argument("--dtype", choices=NAMES, default="bfloat16", help="default: %(default)s")


def run(arguments: argparse.Namespace) -> None:
    from fdpp import dataflow

    print(dataflow.explain(arguments.N, arguments.K, arguments.M, arguments.dtype, arguments.device))
