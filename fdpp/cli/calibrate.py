"""Fit phi, the first reference of each head's softmax, to the logits of a text.

`fdpp generate` and LLM use the result from then on. It lies beside your dataflow table, or where --output says: a
directory stands for fdpp_phi.json in it, which is found there when it is the model's own.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fdpp.cli.options import MAX_TOKENS, add_model, integer, load_model
from fdpp.cli.progress import progress_bar
from fdpp.cli.text_files import read_text
from fdpp.errors import RequestError

if TYPE_CHECKING:
    from fdpp.calibration import Calibration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, phi=False)
    group = parser.add_argument_group("calibration")
    group.add_argument("--text", metavar="FILE", help="a UTF-8 file; - is stdin (default: a text that ships with fdpp)")
    group.add_argument(
        "--tokens", type=integer(2, MAX_TOKENS), default=2048, metavar="N", help="at most (default: %(default)s)"
    )
    group.add_argument("--output", type=Path, metavar="PATH", help="file or directory (default: beside your table)")
    group.add_argument("--plot", type=Path, metavar="FILE", help="picture (default: beside the result, as PNG)")


def run(arguments: argparse.Namespace) -> None:
    from fdpp import calibration

    text = None if arguments.text is None else read_text(arguments.text, "text")
    llm = load_model(arguments, max_batch_size=1, phi=None)
    with progress_bar() as progress:
        found = llm.calibrate(text, max_tokens=arguments.tokens, progress=progress)
    path = arguments.output or calibration.of_user(found.fingerprint)
    if path is None:
        raise RequestError("there is no directory of yours to write to: name one, --output PATH")
    path = path / calibration.FILE if path.is_dir() else path
    picture = arguments.plot or path.with_suffix(".png")
    if picture == path:
        raise RequestError(f"{path}: expected a name for the result that is not the picture's")
    found.write(path)
    print(path)
    print(render(found))
    if importlib.util.find_spec("matplotlib") is None:
        if arguments.plot:
            raise RequestError("--plot needs matplotlib: pip install matplotlib")
        print("fdpp: note: no picture: it needs matplotlib (pip install matplotlib)", file=sys.stderr)
        return
    from fdpp.calibration.plot import plot

    plot(found, picture)
    print(f"picture  {picture}")


def render(found: Calibration) -> str:
    """The figures, one line per topic."""
    heads = [levels for layer in found.quantiles for levels in layer]
    least, low, median, high, most = (sorted(head[i] for head in heads) for i in range(5))
    rows = [
        ("text", f"{found.tokens} tokens; {len(found.quantiles)} layers, {len(heads)} heads"),
        ("logits", f"{least[0]:.1f} .. {most[-1]:.1f}; of each head, 99.98 % within {low[0]:.1f} .. {high[-1]:.1f}"),
    ]
    for guard, (before, after) in found.moves.items():
        rows.append(
            (guard, f"references move {before:.3%} of the time with phi = 0, {after:.3%} with phi of each head")
        )
    return "\n".join(f"{name:9s}{text}" for name, text in rows)
