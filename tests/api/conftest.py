"""Small databases without workers, and a clock that tests turn forward."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import meles
import pytest
from meles.engine.clock import now_ms

OpenDB = Callable[..., meles.DB]


@pytest.fixture
def open_db(tmp_path: Path) -> Iterator[OpenDB]:
    """`open_db(**options)`: opens the test's directory; closed when the test ends."""
    with ExitStack() as opened:

        def make(path: str | Path | None = tmp_path / "db", **options: Any) -> meles.DB:
            given = {"workers": "inline", "sync": "none", **options}
            return opened.enter_context(meles.open(path, **given))

        yield make


@pytest.fixture
def db(open_db: OpenDB) -> meles.DB:
    return open_db()


class Clock:
    """What the engine takes for the time. Unix seconds."""

    def __init__(self) -> None:
        self._ahead_ms = 0

    def now_ms(self) -> int:
        return now_ms() + self._ahead_ms

    @property
    def now(self) -> float:
        return self.now_ms() / 1000

    def turn(self, seconds: float) -> None:
        self._ahead_ms += round(seconds * 1000)


@pytest.fixture
def clock(db: meles.DB, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that `turn` sets forward, for every module that asks for the time."""
    found = Clock()
    for name, module in list(sys.modules.items()):
        if name.startswith("meles.") and getattr(module, "now_ms", None) is now_ms:
            monkeypatch.setattr(module, "now_ms", found.now_ms)
    return found
