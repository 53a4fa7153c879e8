"""Waiting for what announces itself by no event. Where there is one, wait for that instead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")
_PAUSE = 0.01


def wait_until(predicate: Callable[[], _T], seconds: float = 60.0, what: str = "") -> _T:
    """The first true result of `predicate`; `AssertionError` when there was none in `seconds`."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (result := predicate()):
        if time.monotonic() >= deadline:
            raise AssertionError(
                f"{what or predicate} did not come true in {seconds} s: {result!r}"
            )
        pause.wait(_PAUSE)
    return result
