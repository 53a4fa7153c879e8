"""Checking the arguments of public calls that are neither keys nor values: times, numbers, paths.

Runs in: supervisor.
Fails with: `TypeError` for the wrong kind of thing, `ValueError` for a wrong one of the right kind.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final, TypeAlias

from meles.engine.ids import MAX_VERSION
from meles.engine.option_checks import shown

Seconds: TypeAlias = float | int | timedelta
_LONGEST: Final = min(threading.TIMEOUT_MAX, 1e9)  # seconds; what the platform can wait


def seconds(given: Seconds, what: str) -> float:
    """A time to wait in seconds. Past (a deadline that was missed) is 0, longest is what can be."""
    found = given.total_seconds() if isinstance(given, timedelta) else given
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise TypeError(f"{what} must be seconds or a timedelta, not {type(given).__name__}")
    if math.isnan(found):
        raise ValueError(f"{what}={given}: a number of seconds")
    return float(min(max(found, 0), _LONGEST))


def whole(given: object, what: str, low: int, high: int = MAX_VERSION) -> int:
    """A whole number, bounds included."""
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"{what} must be a whole number, not {type(given).__name__}")
    if not low <= given <= high:
        raise ValueError(f"{what}={shown(given)}: a whole number from {low} to {high}")
    return int(given)


def timestamp(given: object, what: str) -> int:
    """A timestamp of a commit: they begin at 1."""
    return whole(given, what, 1)


class Patience:
    """How long a call may still wait: called, it says how many seconds are left.

    None at once are left when `gone()` holds: what is waited for will not come any more.
    """

    def __init__(self, timeout: Seconds | None, gone: Callable[[], bool]) -> None:
        self._seconds = math.inf if timeout is None else seconds(timeout, "timeout")
        self._gone = gone
        self._deadline = time.monotonic() + self._seconds

    def __call__(self) -> float:
        return 0.0 if self._gone() else self._deadline - time.monotonic()

    def __str__(self) -> str:
        return f"{self._seconds:g}"
