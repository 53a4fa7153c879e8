"""Fixtures of the value-log tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from meles.engine.fs.files import Directory


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    with Directory(str(tmp_path)) as opened:
        yield opened
