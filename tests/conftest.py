"""Settings of the whole suite."""

from __future__ import annotations

import os

import pytest

# Threads that wait sleep instead of spinning: many times faster on a machine that is busy with other work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402

from tests.quick import sample  # noqa: E402

torch.set_num_threads(min(2, os.cpu_count() or 1))


def pytest_collection_modifyitems(items):
    for item in sample(items):
        item.add_marker(pytest.mark.quick)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Gives all tests that lack one compiler the same location: pytest then counts them in one line."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and "NOT CHECKED" in report.longrepr[2]:
        report.longrepr = (str(item.config.rootpath / "tests" / "compile"), None, report.longrepr[2])
    return report
