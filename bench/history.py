"""What was measured when: one line per run in results/history/<device>.jsonl, and one page that plots them all.

    python bench/history.py                 writes results/history/history.png
    python bench/history.py --out DIR       of the runs in DIR/history

A line has the date, the commit, torch's version, the conditions, and the speed of every case of a bench.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

Run = dict[str, Any]
"""A line of a file, with the ``device`` that the file is of."""

CONDITIONS = ("model", "dtype", "threads")


@dataclass(frozen=True)
class Figure:
    """The column of a bench that counts, and the columns that name the case."""

    case: tuple[str, ...]
    column: str
    is_time: bool = False

    def speed(self, row: Mapping[str, Any]) -> float:
        """More is faster."""
        return 1 / row[self.column] if self.is_time else row[self.column]


FIGURES = {
    "attention": Figure(("heads", "dtype", "batch", "context"), "us", is_time=True),
    "linear": Figure(("dtype", "K", "N", "M"), "fdpp us", is_time=True),
    "decode": Figure(("context", "batch"), "tokens/s"),
    "neighbour": Figure(("batch", "threads"), "beside"),
    "speculate": Figure(("prompt",), "ngram"),
    "step": Figure(("model", "dtype", "batch", "context"), "tokens/s"),
}


def slug(device: str) -> str:
    """The name of a device in the name of a file."""
    return re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")


def append(result: Path, content: Mapping[str, Any]) -> None:
    """Keep what a bench has written to ``result``, ``<bench>_<device>.json``, as a line in the folder beside it."""
    bench, environment = result.stem.partition("_")[0], content["environment"]
    figure, facts = FIGURES[bench], {**environment, **content}
    rows = [row for row in content["rows"] if row.get("engine", "fdpp").startswith("fdpp")]
    line = {
        "date": environment["date"],
        "commit": environment["commit"],
        "torch": environment["versions"]["torch"],
        "bench": bench,
        "conditions": {name: facts[name] for name in CONDITIONS if name in facts},
        "speeds": {" ".join(str(row[key]) for key in figure.case): round(figure.speed(row), 6) for row in rows},
    }
    path = result.parent / "history" / f"{slug(environment['device'])}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read(folder: Path) -> list[Run]:
    """The runs in a folder, the oldest first."""
    runs = [
        {"device": path.stem, **json.loads(line)}
        for path in folder.glob("*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return sorted(runs, key=lambda run: run["date"])


def series(runs: Iterable[Run]) -> dict[str, dict[str, list[Run]]]:
    """Device -> bench and conditions -> the runs that can be compared."""
    result: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        what = ", ".join([run["bench"], *(f"{name} {value}" for name, value in run["conditions"].items())])
        result.setdefault(run["device"], {}).setdefault(what, []).append(run)
    return result


def relative_speeds(runs: Sequence[Run]) -> list[float]:
    """How many times as fast as the first each run is: the geometric mean over the cases of both; NaN without any."""
    first = runs[0]["speeds"]

    def relative(speeds: Mapping[str, float]) -> float:
        ratios = [math.log(speeds[case] / first[case]) for case in speeds.keys() & first.keys()]
        return math.exp(sum(ratios) / len(ratios)) if ratios else math.nan

    return [relative(run["speeds"]) for run in runs]


def plot(runs: Iterable[Run], path: Path) -> None:
    """One panel per device, one line per bench and conditions, one point per run."""
    from harness import pyplot

    devices = series(runs)
    figure, panels = pyplot().subplots(len(devices), 1, figsize=(9, 3.2 * len(devices)), squeeze=False)
    for panel, (device, benches) in zip(panels[:, 0], sorted(devices.items()), strict=True):
        for what, mine in sorted(benches.items()):
            speeds, dates = relative_speeds(mine), [datetime.fromisoformat(run["date"]) for run in mine]
            panel.plot(dates, speeds, marker="o", label=what)
            for date, speed, run in zip(dates, speeds, mine, strict=True):
                panel.annotate(run["commit"], (date, speed), fontsize=6, rotation=30)
        panel.set(title=device, ylabel="speed, first run = 1")
        panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results = Path(__file__).parent / "results"
    parser.add_argument("--out", type=Path, default=results, help="directory of the results")
    folder = parser.parse_args().out / "history"
    runs = read(folder)
    if not runs:
        parser.error(f"{folder} holds no runs: the benches write them")
    plot(runs, folder / "history.png")


if __name__ == "__main__":
    main()
