"""Measuring a dataflow table: every implementation of a linear layer side by side, with cold caches.

Source: the offline profiling of FlashDecoding++ (arXiv 2311.01282), section 5.
"""

from __future__ import annotations

import functools
import itertools
import os
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from fdpp import dataflow, ops, timing
from fdpp._host import Library
from fdpp.dtypes import dtype_name, torch_dtype
from fdpp.formats import PACKED, packed_bytes

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # M, where a table is measured
MAX_WEIGHT_BYTES = 8 << 30
PANEL_ROWS = 16  # csrc/common/weight_format.h

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``x [M, K] @ weight [N, K].T``."""


def candidates(library: Library, index: int, M: int, dtype: str) -> dict[tuple[str, int], Product]:
    """(impl, config) -> function of (x, weight), for everything that can compute ``M`` rows on device ``index``."""
    found: dict[tuple[str, int], Product] = {("gemv", -1): ops.gemv, ("aten", -1): torch.nn.functional.linear}
    if M <= 64:
        for config in range(library.flat_gemm_configs(dtype, index)):
            found["flat_gemm", config] = functools.partial(ops.flat_gemm, config=config)
    return found


def packed_candidates(library: Library, index: int, dtype: str, layout: str) -> dict[tuple[str, int], Product]:
    """The same for packed weights, of one format."""
    format = layout.partition(":")[0]
    configs = range(library.flat_gemm_configs(dtype, index, format))
    choices = [("aten", -1), *([("flat_gemm", config) for config in configs] or [("gemv", -1), ("flat_gemm", -1)])]

    def forced(impl: str, config: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        library.force_packed_choice(impl, config)
        try:
            return ops.quantized_linear(x, weight, layout)
        finally:
            library.force_packed_choice(None)

    return {choice: functools.partial(forced, *choice) for choice in choices}


def measure(M: int, weights: Weights, seconds: float) -> dataflow.Row:
    """The winner for one shape on the device of the weights, as a table row. ``seconds``: budget of the measurement."""
    exact_weight, device = weights.exact, str(weights.copies[0].device)
    (N, K), dtype = exact_weight.shape, dtype_name(weights.dtype)
    x = _normal(M, K, device, seed=M).to(weights.dtype)
    library, index = dataflow.library_of(device)
    if weights.format:
        functions = packed_candidates(library, index, dtype, f"{weights.format}:{N}")
    else:
        functions = candidates(library, index, M, dtype)

    def on_copy(product: Product) -> timing.Function:
        return lambda copy: product(x, weights.copies[copy])

    with torch.inference_mode():
        exact = x.double() @ exact_weight.double().T
        times = timing.interleave(
            {str(key): on_copy(product) for key, product in functions.items()},
            copies=len(weights.copies),
            seconds=seconds,
            device=device,
        )
        median = {key: statistics.median(times[str(key)]) for key in functions}
        impl, config = min(median, key=lambda key: median[key])
        result = functions[impl, config](x, weights.copies[0]).double()
    return dataflow.Row(
        device=library.device_name(index),
        dtype=dtype,
        N=N,
        K=K,
        M=M,
        impl=impl,
        config=config,
        microseconds=round(median[impl, config] * 1e6, 1),
        gbps=round(weights.copies[0].nbytes / median[impl, config] / 1e9, 2),
        ratio_to_aten=round(median["aten", -1] / median[impl, config], 3),
        error=float(f"{((result - exact).abs().max() / exact.abs().max()).item():.1e}"),
        format=weights.format,
    )


def random_packed(format: str, N: int, K: int, seed: int) -> torch.Tensor:
    """A packed weight of random codes, under one scale that makes their values about ``K ** -0.5``."""
    of, panels = PACKED[format], -(-N // PANEL_ROWS)
    header = PANEL_ROWS * of.scale_dtype.itemsize
    packed = torch.randint(
        0, 64, (packed_bytes(f"{format}:{N}", K),), dtype=torch.uint8, device="cpu",
        generator=torch.Generator("cpu").manual_seed(seed),
    ).view(panels, K // of.block, -1)  # fmt: skip
    largest = max(map(abs, of.codebook), default=2 ** (of.bits - 1))
    scale = K**-0.5 / largest / (32 if of.sub_scales else 1)
    scales = torch.full((PANEL_ROWS * (1 + of.has_min),), scale, dtype=of.scale_dtype, device="cpu")
    scales[PANEL_ROWS:] *= -largest  # minimums, which make the values lie around 0
    packed[..., : header * (1 + of.has_min)] = scales.view(torch.uint8)
    if of.has_zero:
        packed[..., header : header + PANEL_ROWS] = 8
    return packed.flatten()


@dataclass(frozen=True)
class Weights:
    """Copies of one weight that together exceed the caches.

    Attributes:
        copies: ``[N, K]`` of ``dtype``, or packed (uint8).
        exact: ``[N, K]``, their values.
        dtype: of x.
        format: that of packed ones (:mod:`fdpp.formats`); empty for others.
    """

    copies: list[torch.Tensor]
    exact: torch.Tensor
    dtype: torch.dtype
    format: str

    @classmethod
    def random(cls, N: int, K: int, dtype: torch.dtype, device: str, format: str = "") -> Weights:
        """Of normal values, or of random codes whose values are about as large."""
        if format:
            weight = random_packed(format, N, K, seed=N).to(device)
            rows = torch.arange(N, dtype=torch.int64, device=device)
            exact = ops.dequantize_rows(weight, f"{format}:{N}", K, rows, dtype=torch.float32)
        else:
            exact = weight = _normal(N, K, device, seed=N).mul_(K**-0.5).to(dtype)
        return cls([weight.clone() for _ in range(timing.cold_copies(weight.nbytes, device))], exact, dtype, format)


def tune(
    shapes: Iterable[tuple[int, int]],
    *,
    device: str = "cpu",
    dtypes: Iterable[str | torch.dtype] = ("bfloat16",),
    rows: Iterable[int] = ROWS,
    formats: Iterable[str] = ("",),
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
        formats: of packed weights (:mod:`fdpp.formats`), each measured where it has rows of ``K`` columns; the empty
            one stands for weights in the dtypes.
        path: the table; default :func:`fdpp.dataflow.user_table`.
        seconds: budget per ``(dtype, format, N, K, M)``.
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
    shapes, rows, formats = sorted(set(shapes)), sorted(set(rows)), sorted(set(formats))
    for N, K in shapes:
        if N < 1 or K < 1 or N * K * 4 > MAX_WEIGHT_BYTES:
            raise ValueError(f"shape N={N}, K={K}: expected positive sizes and at most 8 GiB of weights")
    table = {row.key: row for row in dataflow.read_table(path)} if os.path.isfile(path) else {}
    comment = f"fdpp dataflow table: medians of cold-cache runs, torch {torch.__version__}" + (
        f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    )
    for format in set(formats) - {""}:
        if not any(K % PACKED[format].block == 0 for _, K in shapes if format in PACKED):
            dataflow.check_format(format, shapes[0][1])
    layers = [
        (dtype, format, N, K)
        for dtype, format, (N, K) in itertools.product(dtypes, formats, shapes)
        if not format or K % PACKED[format].block == 0
    ]
    total, done = len(layers) * len(rows), 0
    for layer in layers:
        missing = [M for M in rows if ((name, *layer), M) not in table]
        done += len(rows) - len(missing)
        if not missing:
            continue
        dtype, format, N, K = layer
        weights = Weights.random(N, K, torch_dtype(dtype), device, format)
        for M in missing:
            if progress:
                progress(done, total, f"{dtype} {format} N={N} K={K} M={M}".replace("  ", " "))
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
