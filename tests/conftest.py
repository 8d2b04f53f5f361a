"""What all tests share: whether the NIR simulators must be there, and real data that no test ships."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def test_data() -> Path:
    """The folder named by $DALIF_TEST_DATA; a test that needs it is skipped where it is not set."""
    folder = os.environ.get("DALIF_TEST_DATA")
    if not folder:
        pytest.skip("DALIF_TEST_DATA is not set")
    return Path(folder)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> pytest.TestReport:
    """Where everything is said to be there, a skip is a failure: it would hide what was not tested."""
    report: pytest.TestReport = yield
    must_run = bool(os.environ.get("DALIF_REQUIRE_SIMULATORS")) and item.get_closest_marker("simulators") is not None
    if os.environ.get("DALIF_TEST_DATA") and "test_data" in getattr(item, "fixturenames", ()):
        must_run = True
    if must_run and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where it must run: {report.longrepr}"
    return report
