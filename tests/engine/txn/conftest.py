"""A small database without workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import meles
import pytest

OpenDB = Callable[..., meles.DB]


@pytest.fixture
def open_db(tmp_path: Path) -> Iterator[OpenDB]:
    """`open_db(**options)`: opens the test's directory; closed when the test ends."""
    with ExitStack() as opened:

        def make(**options: Any) -> meles.DB:
            given = {"workers": "inline", "sync": "none", **options}
            return opened.enter_context(meles.open(tmp_path / "db", **given))

        yield make


@pytest.fixture
def db(open_db: OpenDB) -> meles.DB:
    return open_db()
