"""Fixtures of the value-log tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from meles.engine.fs.files import Directory


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    with Directory(str(tmp_path)) as opened:
        yield opened


@contextmanager
def _reading(look: Callable[[], None]) -> Iterator[None]:
    failures: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            while True:
                last = done.is_set()
                look()
                if last:
                    return
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failures.append(error)

    readers = [threading.Thread(target=run) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        yield
    finally:
        done.set()
        for reader in readers:
            reader.join(60)
    assert failures == []


@pytest.fixture
def reading() -> Callable[[Callable[[], None]], AbstractContextManager[None]]:
    """`with reading(look):` three threads call it over and over, and once more at the end."""
    return _reading
