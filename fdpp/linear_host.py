"""What a compiled library knows about linear layers: its devices, their dataflow tables in force, and its choices.

The functions are those of csrc/common/linear_choice.cpp, which every library with linear layers has.
"""

from __future__ import annotations

import ctypes
from typing import TypedDict

from fdpp.dtypes import NAMES

IMPLEMENTATIONS = ("gemv", "flat_gemm", "aten")  # numbered as in csrc/common/dataflow.h
SOURCES = ("table", "rule", "batch_invariant")  # likewise

_INTEGER = ctypes.c_int64
_ANY_DEVICE = -1  # csrc/common/linear_choice.h
_SIGNATURES = {
    "fdpp_linear_device": (ctypes.c_char_p, [ctypes.c_int]),
    "fdpp_flat_gemm_configs": (ctypes.c_int, [ctypes.c_int, _INTEGER]),
    "fdpp_set_linear_table": (ctypes.c_char_p, [ctypes.c_char_p, ctypes.POINTER(_INTEGER), _INTEGER]),
    "fdpp_clear_linear_tables": (None, []),
    "fdpp_linear_choice": (
        ctypes.c_char_p,
        [ctypes.c_int, _INTEGER, _INTEGER, _INTEGER, _INTEGER, ctypes.POINTER(_INTEGER)],
    ),
    "fdpp_set_batch_invariant": (None, [ctypes.c_int]),
}


class Choice(TypedDict):
    """What ``linear`` does for a shape."""

    impl: str  # one of IMPLEMENTATIONS
    config: int  # of ``flat_gemm``; -1 where there is none
    source: str  # one of SOURCES


class LinearHost:
    """The linear layers of one library. Devices have a number: that of the GPU, 0 for the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions = {}
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            self._functions[name.removeprefix("fdpp_")] = function

    def device_name(self, index: int = 0) -> str:
        """The name by which dataflow tables know a device. Of a GPU, this starts its driver.

        Raises:
            ValueError: there is no such device.
        """
        status, _, text = self._functions["linear_device"](index).decode(errors="replace").partition(";")
        if status != "ok":
            raise ValueError(text)
        return text

    def flat_gemm_configs(self, dtype: str, index: int | None = None) -> int:
        """Number of tile configurations of ``flat_gemm`` for a dtype on a device, or the most that any device has.

        Raises:
            ValueError: an unknown dtype or device.
        """
        device = _ANY_DEVICE if index is None else index
        count = self._functions["flat_gemm_configs"](device, _number(NAMES, "dtype", dtype))
        if count < 0:
            raise ValueError(f"there is no device {index}")
        return count

    def clear_tables(self) -> None:
        """Forget the dataflow tables of all devices."""
        self._functions["clear_linear_tables"]()

    def set_table(self, device_name: str, rows: list[tuple[str, int, int, int, str, int]]) -> None:
        """Replace the dataflow table of a device: rows of (dtype, N, K, M, impl, config).

        Raises:
            ValueError: a row that names something unknown; the table in force stays.
        """
        cells = [
            (_number(NAMES, "dtype", dtype), N, K, M, _number(IMPLEMENTATIONS, "impl", impl), config)
            for dtype, N, K, M, impl, config in rows
        ]
        flat = (_INTEGER * (6 * len(cells)))(*(value for row in cells for value in row))
        problem = self._functions["set_linear_table"](device_name.encode(), flat, len(cells))
        if problem:
            raise ValueError(problem.decode())

    def choice(self, dtype: str, N: int, K: int, M: int, index: int = 0) -> Choice:
        """What ``linear`` does for a shape.

        Raises:
            ValueError: an unknown dtype or device.
        """
        choice = (_INTEGER * 3)()
        problem = self._functions["linear_choice"](index, _number(NAMES, "dtype", dtype), N, K, M, choice)
        if problem:
            raise ValueError(problem.decode())
        return {"impl": IMPLEMENTATIONS[choice[0]], "config": choice[1], "source": SOURCES[choice[2]]}

    def set_batch_invariant(self, on: bool) -> None:
        """Whether ``linear`` takes one implementation and one split for every M."""
        self._functions["set_batch_invariant"](int(on))


def _number(names: tuple[str, ...], what: str, name: str) -> int:
    if name not in names:
        raise ValueError(f"{what} must be one of {', '.join(names)}; got {name!r:.80}")
    return names.index(name)
