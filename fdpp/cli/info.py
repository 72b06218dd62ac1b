"""Show versions, backends, processor features and dataflow tables."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``info`` takes no options."""


def run(arguments: argparse.Namespace) -> None:
    from fdpp import info

    print(info.render(info.collect()))
