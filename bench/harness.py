"""What the benches share: the environment, results, plots and tables. The clock is fdpp.timing."""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
from pathlib import Path

import history
import torch

from fdpp import info
from fdpp.dtypes import NAMES, torch_dtype

RESULTS = Path(__file__).parent / "results"
DTYPES = {name: torch_dtype(name) for name in NAMES}


def fill(arguments: argparse.Namespace, defaults: object) -> argparse.Namespace:
    """Give each argument that was not given the value that ``defaults`` has under its name."""
    for name, value in vars(defaults).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments


def device_name(device: str = "cpu") -> str:
    """What the maker calls the device."""
    return info.cpu_model() if device == "cpu" else torch.cuda.get_device_name(device)


def slug(device: str = "cpu") -> str:
    """The device in the name of a file."""
    return "cpu" if device == "cpu" else history.slug(device_name(device))


def environment(device: str = "cpu") -> dict[str, object]:
    """Where and with what a result was measured."""
    facts = info.collect()
    return {
        "device": device_name(device),
        "cores": facts["processor"].get("cores"),
        "threads": torch.get_num_threads(),
        "processor": facts["processor"],
        "gpus": facts["gpus"],
        "versions": facts["versions"],
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _commit() -> str:
    """The commit of the source tree, with ``+`` when it has changes; ``unknown`` outside git."""

    def git(*words: str) -> str:
        run = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True)
        return run.stdout.strip() if run.returncode == 0 else ""

    commit = git("rev-parse", "--short", "HEAD")
    return (commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")) if commit else "unknown"


def write_json(
    path: Path, device: str = "cpu", *, is_final: bool = True, quick: bool = False, **content: object
) -> None:
    """Write one result, with the environment of ``device``, as JSON; it becomes history unless it was a quick one.

    Not final: what a run that is cut short leaves.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment(device), **content}
    path.write_text(json.dumps(content, indent=1, default=str) + "\n")
    if is_final:
        print(f"wrote {path}")
        if not quick:
            history.append(path, content)


def print_table(rows: list[dict[str, object]], columns: dict[str, str]) -> None:
    """Print rows under ``columns``: key -> format specification (as in ``format(value, specification)``)."""

    def cell(row: dict, key: str) -> str:
        value = row.get(key)
        return "-" if value is None else format(value, columns[key])

    texts = [[cell(row, key) for key in columns] for row in rows]
    widths = [max(len(key), *(len(line[i]) for line in texts)) if texts else len(key) for i, key in enumerate(columns)]
    for line in [list(columns), *texts]:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def pyplot():
    """matplotlib's pyplot, drawing into files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    matplotlib.pyplot.rcParams.update({"axes.grid": True, "grid.alpha": 0.3, "font.size": 9, "legend.fontsize": 8})
    return matplotlib.pyplot
