"""Fixtures for every test, hypothesis profiles, and the guard against what tests leave behind.

Helpers live in `tests/support`, which pyproject.toml puts on the path: test files import them by
their plain names (`from fault_fs import FaultDisk`). Test files import nothing from each other.
"""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tally as tally_of
from fault_fs import FaultDisk
from hypothesis import HealthCheck, settings
from leaks import Held, assert_nothing_left
from meles.engine.fs.files import Directory

GUARDED = ("tests/process", "tests/workers")

settings.register_profile(
    "quick",
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "long",
    max_examples=1000,
    stateful_step_count=100,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("MELES_TEST_PROFILE", "quick"))


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # a shell's background job: children would inherit it, and no Ctrl-C reach them
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers",
        "leak_guard: fails when a process, a descriptor or a thread of Meles outlives the test; "
        f"set for all tests in {' and '.join(GUARDED)}",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parents[1]
    guarded = tuple(root / folder for folder in GUARDED)
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in guarded):
            item.add_marker(pytest.mark.leak_guard)


def pytest_collection_finish() -> None:
    """The collected tests are a heap that lasts: collections need not look through it each time."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was injected, where a test noted it."""
    stats = terminalreporter.stats
    reports = [report for kind in ("passed", "failed") for report in stats.get(kind, ())]
    skipped = [str(report.longrepr[2]) for report in stats.get("skipped", ())]
    rows = tally_of.rows_of(reports)
    if path := os.environ.get("MELES_TALLY"):  # for tests/campaign.py
        Path(path).write_text(tally_of.as_json(rows, skipped))
    lines = tally_of.table(rows, skipped, len(stats.get("failed", ())))
    if lines:
        terminalreporter.section("faults injected")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> tally_of.Tally:
    """Notes faults for the table at the end of the run."""
    return tally_of.noting(request.node)


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set up before and so torn down after the test's other fixtures."""
    if request.node.get_closest_marker("leak_guard") is None:
        yield
        return
    before = Held.now()
    yield
    assert_nothing_left(before)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    """An open, empty directory."""
    path = tmp_path / "db"
    path.mkdir(mode=0o700)
    with Directory(str(path)) as opened:
        yield opened


@pytest.fixture
def shm_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: how long a sync takes is not what is tested."""
    home = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(prefix="meles-test-", dir=home) as path:
        yield Path(path)


@pytest.fixture
def fault_disk() -> Iterator[FaultDisk]:
    """A disk that everything opens its directories on for the length of the test."""
    with FaultDisk().installed() as disk:
        yield disk
