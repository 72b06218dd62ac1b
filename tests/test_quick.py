"""The sample of ``-m quick``."""

from __future__ import annotations

from types import SimpleNamespace

from tests.quick import SLOW, sample


def item(nodeid: str, **parameters: object) -> SimpleNamespace:
    return SimpleNamespace(nodeid=nodeid, callspec=SimpleNamespace(params=parameters))


def test_one_case_of_every_test_for_each_kind_of_backend():
    backends = ("cpu", "simt-nvidia", "simt-cdna", "simt-rdna")
    tests = ("tests/ops/test_a.py::test_a", "tests/ops/test_a.py::test_b")
    items = [item(f"{test}[{name}-{case}]", backend=name) for test in tests for name in backends for case in range(9)]
    chosen = [case.nodeid for case in sample(items)]
    kinds = sorted((nodeid.partition("[")[0], nodeid.partition("[")[2].partition("-")[0]) for nodeid in chosen)
    assert kinds == [(test, kind) for test in tests for kind in ("cpu", "simt")]
    assert sample(reversed(items)) == sample(items)


def test_tests_without_cases_count_and_slow_ones_do_not():
    plain = SimpleNamespace(nodeid="tests/test_layout.py::test_a")
    assert sample([plain, *(SimpleNamespace(nodeid=f"{path}::test_a") for path in SLOW)]) == [plain]
