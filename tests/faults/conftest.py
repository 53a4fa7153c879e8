"""Fixtures of the fault suites."""

from __future__ import annotations

import logging

import pytest
from meles.engine.manifest import manifest_file


@pytest.fixture
def frequent_rewrites(monkeypatch: pytest.MonkeyPatch) -> None:
    """The MANIFEST is rewritten every few records."""
    monkeypatch.setattr(manifest_file, "_REWRITE_AT", 0)
    monkeypatch.setattr(manifest_file, "_REWRITE_FACTOR", 2)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Failures are expected here, and a kept log record keeps what its error points to."""
    caplog.set_level(logging.CRITICAL + 1, "meles")
