"""Every test that asks for ``backend`` runs once per row of the table; ``dtype`` runs once per dtype of a row."""

from __future__ import annotations

import pytest

from .backends import BACKENDS


def _mark(backend):
    return pytest.mark.skipif(not backend.available(), reason=f"{backend} is not available here")


def pytest_generate_tests(metafunc):
    names = metafunc.fixturenames
    if "backend" in names and "dtype" in names:
        rows = [(b, d) for b in BACKENDS for d in b.dtypes]
        ids = [f"{b}-{str(d).removeprefix('torch.')}" for b, d in rows]
        metafunc.parametrize("backend, dtype", [pytest.param(b, d, marks=_mark(b)) for b, d in rows], ids=ids)
    elif "backend" in names:
        metafunc.parametrize("backend", [pytest.param(b, marks=_mark(b)) for b in BACKENDS], ids=str)


@pytest.fixture
def ops(backend):
    return backend.ops()
