"""The heuristic dataflow: which implementation a linear layer takes, from measured tables.

A table is a CSV file with one row per (device, dtype, format, N, K, M): the fastest implementation, its configuration,
and what was measured. The format is that of a packed weight, and empty for others. Shipped tables lie in
``fdpp/dataflow_tables``; the user's own table (``fdpp tune`` writes it) wins over them. Shapes without a row follow a
rule (csrc/common/dataflow.h). The look-up itself is C++.

Tables know a GPU as ``cuda:<name>`` or ``hip:<name>``, and a processor by its maker, family, model and instruction set.

Source: FlashDecoding++ (arXiv 2311.01282), section 5.
"""

from __future__ import annotations

import contextlib
import csv
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdpp import library
from fdpp._host import WEIGHT_FORMATS
from fdpp.dtypes import NAMES, dtype_name

if TYPE_CHECKING:
    import torch

    from fdpp._host import Choice, Library

GPU_BACKENDS = ("cuda", "hip", "simt")
SHIPPED = Path(__file__).parent / "dataflow_tables"
IMPLEMENTATIONS = {"gemv": "A, GEMV", "flat_gemm": "B, flat GEMM", "aten": "C, the vendor's GEMM"}
MAX_ROWS = 100_000
FORMATS = ("", *WEIGHT_FORMATS)


@dataclass(frozen=True)
class Row:
    """One measurement: the winner for a shape on a device.

    ``microseconds`` is its median, ``gbps`` the weights' bytes over it (1e9 bytes/s), ``ratio_to_aten`` the vendor's
    median over it (above 1: faster than the vendor, who for a packed weight unpacks it first), ``error`` its largest
    error relative to the largest result, ``format`` that of the weight (:mod:`fdpp.formats`), empty for plain ones.
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
    format: str = ""

    @property
    def layer(self) -> tuple[str, str, str, int, int]:
        return self.device, self.dtype, self.format, self.N, self.K

    @property
    def key(self) -> tuple[tuple[str, str, str, int, int], int]:
        return self.layer, self.M


COLUMNS = [field.name for field in fields(Row)]
PLAIN_COLUMNS = COLUMNS[:-1]  # of tables from before there were formats
_PARSERS: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float}


def user_table() -> Path | None:
    """The user's own table: ``FDPP_DATAFLOW_TABLE``, else ``fdpp/dataflow.csv`` in the user's cache directory.

    None where there is no such directory: a user without a home, as containers have them.
    """
    named = os.environ.get("FDPP_DATAFLOW_TABLE")
    if named:
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # unset or, by the specification of XDG, to be ignored
        home = os.path.expanduser("~")  # stays "~" where there is none
        if not os.path.isabs(home):
            return None
        cache = Path(home) / ".cache"
    return cache / "fdpp" / "dataflow.csv"


def read_table(path: Path) -> list[Row]:
    """The rows of a table.

    Raises:
        ValueError: what is wrong with it, with file and line.
        OSError: it cannot be read.
    """
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.reader(line for line in file if not line.startswith("#"))
        header = next(reader, None)
        if header not in (COLUMNS, PLAIN_COLUMNS):
            raise ValueError(f"{path}: the first line must be {','.join(COLUMNS)}; got {','.join(header or [])!r:.200}")
        rows: dict[tuple[object, ...], Row] = {}
        for number, cells in enumerate(reader, start=2):
            if len(rows) >= MAX_ROWS:
                raise ValueError(f"{path}: more than {MAX_ROWS} rows")
            row = _parse(cells, len(header), f"{path}, row {number}")
            rows[row.key] = row
    return list(rows.values())


def _parse(cells: list[str], columns: int, where: str) -> Row:
    if len(cells) != columns:
        raise ValueError(f"{where}: expected {columns} columns, got {len(cells)}")
    try:
        row = Row(*(_PARSERS[str(field.type)](cell) for field, cell in zip(fields(Row), cells, strict=False)))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    known = row.dtype in NAMES and row.format in FORMATS
    configs = _flat_gemm_configs(row) if row.impl == "flat_gemm" and known else 0
    problems = {
        f"dtype {row.dtype!r} (expected float32, bfloat16 or float16)": row.dtype not in NAMES,
        f"format {row.format!r:.80} (expected {', '.join(filter(None, FORMATS))}, or none)": row.format not in FORMATS,
        f"impl {row.impl!r} (expected {', '.join(IMPLEMENTATIONS)})": row.impl not in IMPLEMENTATIONS,
        f"N={row.N}, K={row.K}, M={row.M} (expected 1 .. 2^31)": not all(
            1 <= n <= 2**31 for n in (row.N, row.K, row.M)
        ),
        f"config {row.config} of {row.impl}": not -1 <= row.config < configs,
        "figures (expected finite numbers, not negative)": not all(
            0 <= figure < math.inf for figure in (row.microseconds, row.gbps, row.ratio_to_aten, row.error)
        ),
        f"flat_gemm at M={row.M} (at most 64)": row.impl == "flat_gemm" and not row.format and row.M > 64,
        "gemv of a packed weight on a GPU": row.impl == "gemv"
        and bool(row.format)
        and _backend_of(row.device) != "cpu",
    }
    for problem, holds in problems.items():
        if holds:
            raise ValueError(f"{where}: bad {problem}")
    return row


def _backend_of(device: str) -> str:
    """The backend that the name of a device in a table belongs to."""
    prefix, colon, _ = device.partition(":")
    return prefix if colon and prefix in GPU_BACKENDS else "cpu"


def _libraries() -> dict[str, Library]:
    """The libraries that are in this process, by backend."""
    loaded = ["cpu", *filter(library.is_loaded, GPU_BACKENDS)]
    return {backend: library.load(backend) for backend in loaded}


def _flat_gemm_configs(row: Row) -> int:
    """How many configurations there are for a row's device; any number where its library is not here to ask."""
    found = _libraries().get(_backend_of(row.device))
    return found.flat_gemm_configs(row.dtype, format=row.format) if found else MAX_ROWS


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
    own = user_table()
    paths = [*sorted(SHIPPED.glob("*.csv")), *([own] if own else [])]
    found = {}
    for path in paths:
        if not os.path.isfile(path):  # Path.is_file() raises where a directory may not be searched
            if path == own and os.environ.get("FDPP_DATAFLOW_TABLE"):
                warnings.warn(f"FDPP_DATAFLOW_TABLE: {path} is no file; going on without it", stacklevel=2)
            continue
        try:
            found[path] = read_table(path)
        except (OSError, ValueError) as error:
            warnings.warn(f"dataflow table left out: {error}", stacklevel=2)
    return found


def install() -> None:
    """Hand the tables to the libraries in place of those they had: of those for the CPU, the rows of this processor."""
    global _generation
    _generation += 1
    rows: dict[str, dict[tuple[object, ...], Row]] = {}
    for table in tables().values():
        for row in table:
            rows.setdefault(row.device, {})[row.key] = row
    libraries = _libraries()
    processor = libraries["cpu"].device_name()
    for each in libraries.values():
        each.clear_tables()
    for device, mine in rows.items():
        owner = libraries.get(_backend_of(device))
        if owner and (owner is not libraries["cpu"] or device == processor):
            owner.set_table(
                device,
                [(row.dtype, row.N, row.K, row.M, row.impl, row.config, row.format) for row in mine.values()],
            )
    set_batch_invariant(_batch_invariant)


_generation = 0
_batch_invariant = os.environ.get("FDPP_BATCH_INVARIANT") == "1"


def generation() -> tuple[int, bool]:
    """Another value whenever ``linear`` may choose otherwise than before, so that what was recorded is out of date."""
    return _generation, _batch_invariant


def set_batch_invariant(on: bool) -> None:
    """Whether ``linear`` gives a row the same bits whatever rows stand around it, in this process and from now on.

    It then takes one implementation and one split for every M, and no table: flat GEMM on GPUs (also beyond 64 rows),
    GEMV on CPUs (prompts, which have many rows, are slow that way). ``decode_attention`` is batch-invariant with a
    given ``num_splits``; the engine gives one when this is on, so that a sequence decodes to the same bits alone and in
    any batch. ``FDPP_BATCH_INVARIANT=1`` in the environment does the same from the start.
    """
    global _batch_invariant
    _batch_invariant = bool(on)
    for each in _libraries().values():
        each.set_batch_invariant(_batch_invariant)


def is_batch_invariant() -> bool:
    """What :func:`set_batch_invariant` said last."""
    return _batch_invariant


@contextlib.contextmanager
def chosen_by_rows(tokens_per_row: int) -> Iterator[None]:
    """Within, ``linear`` on a CPU takes for M rows of x what it takes for ``M / tokens_per_row`` of them.

    GEMV and flat GEMM of a CPU each sum a row alike for every M, but not like each other: a step that appends several
    tokens to each sequence this way has the bits of steps of one token. It is a setting of the thread.
    """
    cpu = library.load()
    cpu.set_tokens_per_row(tokens_per_row)
    try:
        yield
    finally:
        cpu.set_tokens_per_row(1)


def library_of(device: str) -> tuple[Library, int]:
    """The library of a torch device, and the device's number there.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:1`` (an AMD GPU too is called so in torch).

    Raises:
        ValueError: this torch or this build of fdpp has no such device.
    """
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return library.load(), 0
    vendor = library.gpu_vendor()
    if kind != "cuda" or not (index or "0").isdigit():
        raise ValueError(f"device must be cpu, cuda or cuda:<number>; got {device!r:.80}")
    if vendor is None:
        raise ValueError("device cuda: this torch is built without support for GPUs")
    if problem := library.load_gpu():
        raise ValueError(problem)
    import torch

    if int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device}: torch sees {torch.cuda.device_count()} GPUs")
    return library.load(vendor), int(index or 0)


def explain(
    N: int, K: int, M: int, dtype: str | torch.dtype = "bfloat16", device: str = "cpu", weight_format: str = ""
) -> str:
    """Which implementation ``linear`` takes for ``x [M, K]`` and ``weight [N, K]``, and why: a few lines of text.

    Args:
        N: rows of the weight.
        K: its columns.
        M: rows of x.
        dtype: a dtype of torch, or its name.
        device: a torch device, as :func:`library_of` takes it.
        weight_format: that of a packed weight, which ``quantized_linear`` takes; empty for one in ``dtype``.

    Raises:
        ValueError: an unknown dtype, device or format, or a size below 1 or that the format does not have.
    """
    if min(N, K, M) < 1:
        raise ValueError(f"N, K and M must be at least 1; got {N}, {K}, {M}")
    check_format(weight_format, K)
    dtype = dtype_name(dtype)
    found, index = library_of(device)
    choice, name = found.choice(dtype, N, K, M, index, weight_format), found.device_name(index)
    config = f", configuration {choice['config']}" if choice["config"] >= 0 else ""
    weight = f"[N={N}, K={K}]^T" + (f" in {weight_format}" if weight_format else "")
    what = f"{dtype} [M={M}, K={K}] x {weight} on {name}: {IMPLEMENTATIONS[choice['impl']]}{config}"
    return f"{what}\n{_reason(choice, (name, dtype, weight_format, N, K), M)}"


def check_format(name: str, K: int) -> None:
    """Refuse a format of packed weights that is none, or that has no rows of ``K`` columns; empty: a plain weight.

    Raises:
        ValueError: what is wrong.
    """
    if name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(filter(None, FORMATS))}; got {name!r:.80}")
    block = 32 * WEIGHT_FORMATS[name]["groups"] if name else 1
    if K % block:
        raise ValueError(f"columns of {name} must be a multiple of {block}; got {K}")


def _reason(choice: Choice, layer: tuple[str, str, str, int, int], M: int) -> str:
    device, dtype, weight_format, _, K = layer
    if choice["source"] == "batch_invariant":
        return "for all M, as results are to be batch-invariant"
    if choice["source"] == "rule":
        why = "by rule: no table has a row of this device for this shape at this M or above (`fdpp tune` writes one)"
        if _backend_of(device) != "cpu" and choice["impl"] == "aten":
            if dtype == "float32":
                return f"{why}; the kernels for GPUs take float16 and bfloat16"
            if K % 8 and not weight_format:
                return f"{why}; K is no multiple of 8, which the kernels for GPUs would read element by element"
        return why
    rows = [
        (row.M, path != user_table(), path, row)
        for path, table in tables().items()
        for row in table
        if row.layer == layer and row.M >= M
    ]
    if not rows:
        return "by a table that was installed and has changed or gone since"
    *_, path, row = min(rows, key=lambda found: found[:2])
    origin = "your table" if path == user_table() else "shipped table"
    return (
        f"by {origin} {path.name}, measured at M={row.M}: {row.microseconds:.0f} us, {row.gbps:.1f} GB/s of weights, "
        f"{row.ratio_to_aten:.2f}x as fast as the vendor's GEMM, error {row.error:.1e}"
    )
