"""Every test that asks for ``backend`` runs once per row of the table; ``dtype`` runs once per dtype of a row.

A test runs on the backends that have the operators it calls: those of its mark ``operators``, else that of its
parameter ``call`` (or ``wrong.call``), else all. The mark ``where`` holds what else a backend must be.
"""

from __future__ import annotations

import zlib

import pytest

from .backends import BACKENDS, Backend
from .valid import OPERATORS, op_name


def pytest_generate_tests(metafunc):
    names = metafunc.fixturenames
    if "backend" in names and "dtype" in names:
        rows = [(b, d) for b in BACKENDS for d in b.dtypes]
        ids = [f"{b}-{str(d).removeprefix('torch.')}" for b, d in rows]
        metafunc.parametrize("backend, dtype", rows, ids=ids)
    elif "backend" in names:
        metafunc.parametrize("backend", BACKENDS, ids=str)


def _operators(item) -> set[str]:
    mark = item.get_closest_marker("operators")
    params = item.callspec.params
    call = params.get("call") or getattr(params.get("wrong"), "call", None)
    return set(mark.args) if mark else {op_name(call)} if call else set(OPERATORS)


def pytest_collection_modifyitems(items):
    def can_run(item) -> bool:
        backend = item.callspec.params.get("backend") if hasattr(item, "callspec") else None
        if not isinstance(backend, Backend):  # pytest asks for the tests of every folder
            return True
        where = item.get_closest_marker("where")
        return _operators(item) <= backend.operators and (where is None or where.args[0](backend))

    items[:] = [item for item in items if can_run(item)]


@pytest.fixture
def ops(backend, request):
    backend.set_seed(zlib.crc32(request.node.nodeid.encode()))
    return backend.ops()
