"""Write a model as a GGUF file, with weights in a format of choice.

The file holds tokenizer and chat template, too; fdpp and llama.cpp read it. Matrices get the format, vectors float32.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fdpp.cli.progress import progress_bar
from fdpp.file_formats import FILE_FORMATS

if TYPE_CHECKING:
    from fdpp.export import Exported


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="M", help="a Hugging Face directory or id, or a GGUF file")
    parser.add_argument(
        "--format", required=True, choices=FILE_FORMATS, help="of matrices: one of %(choices)s", metavar="F"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the GGUF file to write")
    parser.add_argument("--force", action="store_true", help="replace the file where it exists")


def run(arguments: argparse.Namespace) -> None:
    from fdpp.export import export

    with progress_bar() as progress:
        done = export(arguments.model, arguments.output, arguments.format, arguments.force, progress)
    if done.quantised:
        print(
            f"fdpp: note: {done.quantised} tensors of the model were quantised already; "
            "what they were rounded to is what is rounded now",
            file=sys.stderr,
        )
    print(done.path)
    print(render(done, arguments.format))


_OTHERS = {"q8_0": "the head", "f16": "rows that are no whole number of blocks"}


def render(done: Exported, format: str) -> str:
    """The figures, one line per topic."""
    rows = [
        ("tensors", ", ".join(f"{count} {kind}" for kind, count in done.types.most_common())),
        ("size", f"{done.path.stat().st_size / 1e6:.1f} MB"),
    ]
    if others := [kind for kind, _ in done.types.most_common() if kind not in (format, "f32")]:
        rows.append(("others", ", ".join(f"{done.types[kind]} {kind} ({_OTHERS[kind]})" for kind in others)))
    return "\n".join(f"{name:9s}{text}" for name, text in rows)
