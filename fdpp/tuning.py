"""Measuring a dataflow table: every implementation of a linear layer side by side, with cold caches.

Source: the offline profiling of FlashDecoding++ (arXiv 2311.01282), section 5.
"""

from __future__ import annotations

import functools
import os
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from fdpp import dataflow, ops, timing
from fdpp._host import Library
from fdpp.dtypes import dtype_name, torch_dtype

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # M, where a table is measured
MAX_WEIGHT_BYTES = 8 << 30

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``x [M, K] @ weight [N, K].T``."""


def candidates(library: Library, index: int, M: int, dtype: str) -> dict[tuple[str, int], Product]:
    """(impl, config) -> function of (x, weight), for everything that can compute ``M`` rows on device ``index``."""
    found: dict[tuple[str, int], Product] = {("gemv", -1): ops.gemv, ("aten", -1): torch.nn.functional.linear}
    if M <= 64:
        for config in range(library.flat_gemm_configs(dtype, index)):
            found["flat_gemm", config] = functools.partial(ops.flat_gemm, config=config)
    return found


def measure(M: int, weights: list[torch.Tensor], seconds: float) -> dataflow.Row:
    """The winner for one shape on the device of the weights, as a table row.

    ``weights``: copies of a ``[N, K]`` weight that together exceed the caches. ``seconds``: budget of the measurement.
    """
    (N, K), dtype, device = weights[0].shape, dtype_name(weights[0].dtype), str(weights[0].device)
    x = _normal(M, K, device, seed=M).to(weights[0].dtype)
    library, index = dataflow.library_of(device)
    functions = candidates(library, index, M, dtype)

    def on_copy(product: Product) -> timing.Function:
        return lambda copy: product(x, weights[copy])

    with torch.inference_mode():
        exact = x.double() @ weights[0].double().T
        times = timing.interleave(
            {str(key): on_copy(product) for key, product in functions.items()},
            copies=len(weights),
            seconds=seconds,
            device=device,
        )
        median = {key: statistics.median(times[str(key)]) for key in functions}
        impl, config = min(median, key=lambda key: median[key])
        result = functions[impl, config](x, weights[0]).double()
    return dataflow.Row(
        device=library.device_name(index),
        dtype=dtype,
        N=N,
        K=K,
        M=M,
        impl=impl,
        config=config,
        microseconds=round(median[impl, config] * 1e6, 1),
        gbps=round(weights[0].nbytes / median[impl, config] / 1e9, 2),
        ratio_to_aten=round(median["aten", -1] / median[impl, config], 3),
        error=float(f"{((result - exact).abs().max() / exact.abs().max()).item():.1e}"),
    )


def tune(
    shapes: Iterable[tuple[int, int]],
    *,
    device: str = "cpu",
    dtypes: Iterable[str | torch.dtype] = ("bfloat16",),
    rows: Iterable[int] = ROWS,
    path: Path | None = None,
    seconds: float = 0.5,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Measure the shapes on this machine and write a table; the user's own is in use from now on.

    What the table already holds for this device is kept and not measured again, so an interrupted run goes on where
    it stopped: the file is replaced as a whole after each shape.

    Args:
        shapes: ``(N, K)`` of each weight.
        device: a torch device, as :func:`fdpp.dataflow.library_of` takes it.
        dtypes: dtypes of torch or their names; a GPU's kernels take bfloat16 and float16.
        rows: values of ``M``.
        path: the table; default :func:`fdpp.dataflow.user_table`.
        seconds: budget per ``(dtype, N, K, M)``.
        progress: called as ``progress(done, total, text)``.

    Returns:
        the path of the table.

    Raises:
        ValueError: an unknown dtype, a device that is not there or does not take a dtype, a shape that is not positive
            or whose weights exceed 8 GiB, a table that cannot be read, or no place for one.
    """
    path, dtypes = path or dataflow.user_table(), [dtype_name(dtype, device.partition(":")[0]) for dtype in dtypes]
    if path is None:
        raise ValueError("this user has no home directory: name a table with --output or FDPP_DATAFLOW_TABLE")
    library, index = dataflow.library_of(device)
    name = library.device_name(index)
    shapes, rows = sorted(set(shapes)), sorted(set(rows))
    for N, K in shapes:
        if N < 1 or K < 1 or N * K * 4 > MAX_WEIGHT_BYTES:
            raise ValueError(f"shape N={N}, K={K}: expected positive sizes and at most 8 GiB of weights")
    table = {row.key: row for row in dataflow.read_table(path)} if os.path.isfile(path) else {}
    comment = f"fdpp dataflow table: medians of cold-cache runs, torch {torch.__version__}" + (
        f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    )
    total, done = len(shapes) * len(dtypes) * len(rows), 0
    for dtype in dtypes:
        for N, K in shapes:
            missing = [M for M in rows if (name, dtype, N, K, M) not in table]
            done += len(rows) - len(missing)
            if not missing:
                continue
            weight = _normal(N, K, device, seed=N).mul_(K**-0.5).to(torch_dtype(dtype))
            weights = [weight.clone() for _ in range(timing.cold_copies(weight.nbytes, device))]
            for M in missing:
                if progress:
                    progress(done, total, f"{dtype} N={N} K={K} M={M}")
                row = measure(M, weights, seconds)
                table[row.key] = row
                done += 1
            dataflow.write_table(path, list(table.values()), comment)
    if progress:
        progress(total, total, str(path))
    dataflow.install()
    return path


def _normal(rows: int, columns: int, device: str, seed: int) -> torch.Tensor:
    """float32, whatever torch's default dtype, device and generator are."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float32, device=device)
