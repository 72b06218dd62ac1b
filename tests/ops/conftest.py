"""Every test that asks for ``backend`` runs once per row of the table; ``dtype`` runs once per dtype of a row.

The mark ``where`` holds what a backend must be for a test.
"""

from __future__ import annotations

import zlib

import pytest

from .backends import BACKENDS, Backend


def pytest_generate_tests(metafunc):
    names = metafunc.fixturenames
    if "backend" in names and "dtype" in names:
        rows = [(b, d) for b in BACKENDS for d in b.dtypes]
        ids = [f"{b}-{str(d).removeprefix('torch.')}" for b, d in rows]
        metafunc.parametrize("backend, dtype", rows, ids=ids)
    elif "backend" in names:
        metafunc.parametrize("backend", BACKENDS, ids=str)


def pytest_collection_modifyitems(items):
    def can_run(item) -> bool:
        backend = item.callspec.params.get("backend") if hasattr(item, "callspec") else None
        if not isinstance(backend, Backend):  # pytest asks for the tests of every folder
            return True
        where = item.get_closest_marker("where")
        return where is None or where.args[0](backend)

    items[:] = [item for item in items if can_run(item)]


@pytest.fixture
def ops(backend, request):
    backend.set_seed(zlib.crc32(request.node.nodeid.encode()))
    return backend.ops()
