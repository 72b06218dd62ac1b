"""Types and groups of options that several commands share."""

from __future__ import annotations

import argparse
import json
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


def add_model(parser: argparse.ArgumentParser, phi: bool = True, is_required: bool = True) -> None:
    """The options that say which model runs, and where; and, unless not ``phi``, with which calibration."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", required=is_required, metavar="M", help="a Hugging Face directory or id, or a GGUF file"
    )
    group.add_argument("--device", default="cpu", help="device to run on (default: %(default)s)")
    group.add_argument("--dtype", choices=NAMES, default="bfloat16", help="compute type (default: %(default)s)")
    group.add_argument(
        "--weights",
        choices=("stored", "dequantised"),
        help="multiply with matrices of few bits as they are stored, or unpack them to --dtype (default: stored, "
        "but for float32 on a GPU)",
    )
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
        "--no-capture", action="store_true", help="run decode steps operator by operator instead of as one recording"
    )
    if phi:
        group.add_argument(
            "--phi",
            default="auto",
            metavar="FILE",
            help="a result of `fdpp calibrate`, or none (default: the model's own or yours, where there is one)",
        )


def add_template(group: argparse._ArgumentGroup) -> None:
    """The options that reach the chat template."""
    group.add_argument("--system", type=text, metavar="TEXT", help="a system message before everything")
    group.add_argument(
        "--template-arg",
        type=variable,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable of the chat template, as enable_thinking=false: JSON, else a text; may be given several times",
    )


def add_decoding(parser: argparse.ArgumentParser, max_new_tokens: int = 128) -> None:
    """The options that say how tokens are chosen, and where an answer ends."""
    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--max-new-tokens",
        type=integer(1, MAX_TOKENS),
        default=max_new_tokens,
        metavar="N",
        help="default: %(default)s",
    )
    group.add_argument("--temperature", type=number(0, 1e6), metavar="T", help="0 is greedy")
    group.add_argument("--top-k", type=integer(0, MAX_TOKENS), metavar="K", help="0: no limit")
    group.add_argument("--top-p", type=number(0, 1), metavar="P", help="1: no limit")
    group.add_argument("--min-p", type=number(0, 1), metavar="P", help="as a share of the likeliest; 0: no limit")
    group.add_argument("--repetition-penalty", type=number(0.01, 100), metavar="R", help="1: none")
    group.add_argument("--seed", type=integer(0, 2**63 - 1), metavar="S", help="make sampling repeatable")
    group.add_argument(
        "--no-generation-config", action="store_true", help="leave out the sampling options of generation_config.json"
    )
    group.add_argument(
        "--stop",
        type=text,
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text, also a special token; may be given several times",
    )
    group.add_argument(
        "--stop-token-id",
        type=integer(0, MAX_TOKENS),
        action="append",
        default=[],
        metavar="ID",
        help="end at this token; may be given several times",
    )
    group.add_argument("--ignore-eos", action="store_true", help="go on past the end-of-sequence token")
    guesses = group.add_mutually_exclusive_group()
    guesses.add_argument(
        "--speculate",
        choices=("ngram",),
        help="ngram: guess that text goes on as it did before, and verify several tokens in a step",
    )
    guesses.add_argument("--draft", metavar="M", help="a smaller model with the same tokenizer that guesses instead")


def decoding_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What :func:`add_decoding` describes, as ``LLM.generate`` takes it."""
    return {
        "max_new_tokens": arguments.max_new_tokens,
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "min_p": arguments.min_p,
        "repetition_penalty": arguments.repetition_penalty,
        "seed": arguments.seed,
        "stop": tuple(arguments.stop),
        "stop_token_ids": tuple(arguments.stop_token_id),
        "ignore_eos": arguments.ignore_eos,
    }


def variable(argument: str) -> tuple[str, Any]:
    """An argparse type: ``NAME=VALUE``."""
    name, equals, value = text(argument).partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {argument[:40]!r}")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def load_model(arguments: argparse.Namespace, **options: Any) -> LLM:
    """The model that :func:`add_model` describes, loaded with a progress bar when stderr is a terminal."""
    from fdpp import LLM
    from fdpp.cli.progress import progress_bar

    options = {name: getattr(arguments, name, None) for name in ("phi", "speculate", "draft", "weights")} | options
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
