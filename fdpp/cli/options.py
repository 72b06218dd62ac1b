"""Types and groups of options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fdpp.dtypes import NAMES
from fdpp.limits import MAX_THREADS

if TYPE_CHECKING:
    from fdpp import LLM

MAX_TOKENS = 2**31 - 1  # positions are int32
MAX_SIZE = 2**31 - 1


def integer(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: an integer in ``[low, high]``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected an integer, got {text[:40]!r}") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected an integer from {low} to {high}, got {text[:40]}")
        return value

    return parse


def number(low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a number in ``[low, high]``; NaN is in no range."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a number, got {text[:40]!r}") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a number from {low:g} to {high:g}, got {text[:40]}")
        return value

    return parse


def text(argument: str) -> str:
    """An argparse type: a text in UTF-8, whatever the locale is. Python keeps bytes that the locale does not know."""
    try:
        return argument.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise argparse.ArgumentTypeError(f"expected a text in UTF-8, got {argument[:40]!r}") from None


def add_model(parser: argparse.ArgumentParser, phi: bool = True) -> None:
    """The options that say which model runs, and where; and, unless not ``phi``, with which calibration."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", required=True, metavar="M", help="a Hugging Face directory or id, or a GGUF file")
    group.add_argument("--device", default="cpu", help="device to run on (default: %(default)s)")
    group.add_argument("--dtype", choices=NAMES, default="bfloat16", help="compute type (default: %(default)s)")
    group.add_argument(
        "--threads", type=integer(1, MAX_THREADS), metavar="N", help="CPU threads (default: torch's number)"
    )
    group.add_argument(
        "--max-seq-len",
        type=integer(1, MAX_TOKENS),
        metavar="N",
        help="the most tokens of prompt and answer together (default: the model's context)",
    )
    group.add_argument(
        "--page-size", type=integer(1, MAX_TOKENS), metavar="N", help="use a paged KV cache (default: contiguous)"
    )
    group.add_argument(
        "--no-capture", action="store_true", help="on a GPU, run decode steps eagerly instead of from a captured graph"
    )
    if phi:
        group.add_argument(
            "--phi",
            default="auto",
            metavar="FILE",
            help="a result of `fdpp calibrate`, or none (default: the model's own or yours, where there is one)",
        )


def load_model(arguments: argparse.Namespace, **options: Any) -> LLM:
    """The model that :func:`add_model` describes, loaded with a progress bar when stderr is a terminal."""
    from fdpp import LLM
    from fdpp.cli.progress import progress_bar

    options = {"phi": getattr(arguments, "phi", None)} | options
    with progress_bar() as progress:
        return LLM(
            arguments.model,
            device=arguments.device,
            dtype=arguments.dtype,
            max_seq_len=arguments.max_seq_len,
            page_size=arguments.page_size,
            num_threads=arguments.threads,
            capture=not arguments.no_capture,
            progress=progress,
            **options,
        )
