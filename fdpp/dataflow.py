"""The heuristic dataflow: which implementation a linear layer takes, from measured tables.

A table is a CSV file with one row per (device, dtype, N, K, M): the fastest implementation, its configuration, and what
was measured. Shipped tables lie in ``fdpp/dataflow_tables``; the user's own table (``fdpp tune`` writes it) wins over
them. Shapes without a row follow a rule (``cpu_rule`` in csrc/common/dataflow.cpp). The look-up itself is C++.

Source: FlashDecoding++ (arXiv 2311.01282), section 5.
"""

from __future__ import annotations

import csv
import os
import warnings
from dataclasses import dataclass, fields
from pathlib import Path

from fdpp import native

SHIPPED = Path(__file__).parent / "dataflow_tables"
IMPLEMENTATIONS = {"gemv": "A, GEMV", "flat_gemm": "B, flat GEMM", "aten": "C, the vendor's GEMM"}
MAX_ROWS = 100_000


@dataclass(frozen=True)
class Row:
    """One measurement: the winner for a shape on a device.

    ``microseconds`` is its median, ``gbps`` the weights' bytes over it (1e9 bytes/s), ``ratio_to_aten`` the vendor's
    median over it (above 1: faster than the vendor), ``error`` its largest error relative to the largest result.
    """

    device: str
    dtype: str
    N: int
    K: int
    M: int
    impl: str
    config: int
    microseconds: float
    gbps: float
    ratio_to_aten: float
    error: float

    @property
    def key(self) -> tuple[str, str, int, int, int]:
        return self.device, self.dtype, self.N, self.K, self.M


COLUMNS = [field.name for field in fields(Row)]
_PARSERS = {"str": str, "int": int, "float": float}


def user_table() -> Path:
    """The user's own table: ``FDPP_DATAFLOW_TABLE``, else ``fdpp/dataflow.csv`` in the user's cache directory."""
    named = os.environ.get("FDPP_DATAFLOW_TABLE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fdpp" / "dataflow.csv"


def read_table(path: Path) -> list[Row]:
    """The rows of a table.

    Raises:
        ValueError: what is wrong with it, with file and line.
        OSError: it cannot be read.
    """
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.reader(line for line in file if not line.startswith("#"))
        header = next(reader, None)
        if header != COLUMNS:
            raise ValueError(f"{path}: the first line must be {','.join(COLUMNS)}; got {','.join(header or [])!r:.200}")
        rows: dict[tuple, Row] = {}
        for number, cells in enumerate(reader, start=2):
            if len(rows) >= MAX_ROWS:
                raise ValueError(f"{path}: more than {MAX_ROWS} rows")
            row = _parse(cells, f"{path}, row {number}")
            rows[row.key] = row
    return list(rows.values())


def _parse(cells: list[str], where: str) -> Row:
    if len(cells) != len(COLUMNS):
        raise ValueError(f"{where}: expected {len(COLUMNS)} columns, got {len(cells)}")
    try:
        row = Row(*(_PARSERS[field.type](cell) for field, cell in zip(fields(Row), cells, strict=True)))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    known_dtype = row.dtype in ("float32", "bfloat16", "float16")
    configs = native.load().flat_gemm_configs(row.dtype) if row.impl == "flat_gemm" and known_dtype else 0
    problems = {
        f"dtype {row.dtype!r} (expected float32, bfloat16 or float16)": not known_dtype,
        f"impl {row.impl!r} (expected {', '.join(IMPLEMENTATIONS)})": row.impl not in IMPLEMENTATIONS,
        f"N={row.N}, K={row.K}, M={row.M} (expected 1 .. 2^31)": not all(
            1 <= n <= 2**31 for n in (row.N, row.K, row.M)
        ),
        f"config {row.config} of {row.impl}": not -1 <= row.config < configs,
        f"flat_gemm at M={row.M} (at most 64)": row.impl == "flat_gemm" and row.M > 64,
    }
    for problem, holds in problems.items():
        if holds:
            raise ValueError(f"{where}: bad {problem}")
    return row


def write_table(path: Path, rows: list[Row], comment: str) -> None:
    """Write a table as a whole: a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            file.writelines(f"# {line}\n" for line in comment.splitlines())
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for row in sorted(rows, key=lambda row: row.key):
                writer.writerow(getattr(row, name) for name in COLUMNS)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def tables() -> dict[Path, list[Row]]:
    """The tables that exist, the user's last (it wins), with their rows.

    A table that cannot be used is left out, with a warning that says why.
    """
    paths = [*sorted(SHIPPED.glob("*.csv")), user_table()]
    found = {}
    for path in paths:
        if not path.is_file():
            if path == user_table() and os.environ.get("FDPP_DATAFLOW_TABLE"):
                warnings.warn(f"FDPP_DATAFLOW_TABLE: {path} is no file; going on without it", stacklevel=2)
            continue
        try:
            found[path] = read_table(path)
        except (OSError, ValueError) as error:
            warnings.warn(f"dataflow table left out: {error}", stacklevel=2)
    return found


def install() -> int:
    """Hand the rows measured on this device to the core. Returns how many there are."""
    core = native.load()
    device = core.cpu_features()["device"]
    rows = {row.key: row for table in tables().values() for row in table if row.device == device}
    core.set_linear_table([(row.dtype, row.N, row.K, row.M, row.impl, row.config) for row in rows.values()])
    return len(rows)


def explain(N: int, K: int, M: int, dtype: str = "bfloat16") -> str:
    """Which implementation ``linear`` takes for ``x [M, K]`` and ``weight [N, K]``, and why: a few lines of text.

    Raises:
        ValueError: an unknown dtype or a size below 1.
    """
    if min(N, K, M) < 1:
        raise ValueError(f"N, K and M must be at least 1; got {N}, {K}, {M}")
    core = native.load()
    choice = core.linear_choice(dtype, N, K, M)
    device = core.cpu_features()["device"]
    config = f", configuration {choice['config']}" if choice["config"] >= 0 else ""
    lines = [f"{dtype} [M={M}, K={K}] x [N={N}, K={K}]^T on {device}: {IMPLEMENTATIONS[choice['impl']]}{config}"]
    if choice["source"] == "rule":
        lines.append(
            "by rule: no table has a row of this device for this shape at this M or above (`fdpp tune` writes one)"
        )
        return "\n".join(lines)
    rows = [
        (row.M, path != user_table(), path, row)
        for path, table in tables().items()
        for row in table
        if row.key[:4] == (device, dtype, N, K) and row.M >= M
    ]
    if not rows:
        lines.append("by a table that was installed and has changed or gone since")
        return "\n".join(lines)
    *_, path, row = min(rows, key=lambda found: found[:2])
    origin = "your table" if path == user_table() else "shipped table"
    lines.append(
        f"by {origin} {path.name}, measured at M={row.M}: {row.microseconds:.0f} us, {row.gbps:.1f} GB/s of weights, "
        f"{row.ratio_to_aten:.2f}x as fast as the vendor's GEMM, error {row.error:.1e}"
    )
    return "\n".join(lines)
