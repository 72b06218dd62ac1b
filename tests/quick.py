"""The tests of ``-m quick``: one case of every test, once for each backend, the simulated machines together being one.

Which case, and which machine, a hash of the names decides: the same at every run, another one for every test.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import pytest

# Compilers, builds, benches, processes and a real model: what takes long however few its cases are.
SLOW = (
    "tests/bench/test_scripts.py",
    "tests/cli/test_process.py",
    "tests/compile/",
    "tests/engine/test_real_model.py",
    "tests/test_backends_build.py",
    "tests/test_two_commands.py",
)


def _group(item: pytest.Item) -> tuple[str, str]:
    """What one case stands for: the test and the kind of backend."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return item.nodeid.partition("[")[0], str(parameters.get("backend", "")).partition("-")[0]


def sample(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The quick ones among the tests."""
    chosen: dict[tuple[str, str], pytest.Item] = {}
    for item in sorted(items, key=lambda item: zlib.crc32(item.nodeid.encode())):
        if not item.nodeid.startswith(SLOW):
            chosen.setdefault(_group(item), item)
    return list(chosen.values())
