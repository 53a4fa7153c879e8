"""Checking the arguments of public calls that are neither keys nor values: times, numbers, paths.

Runs in: supervisor.
Fails with: `ValueError`, of paths `ConfigError`; `TypeError` for what is no time or path at all.
"""

from __future__ import annotations

import math
import operator
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final, SupportsIndex, TypeAlias

from meles.engine.errors import ConfigError
from meles.engine.ids import MAX_VERSION
from meles.engine.option_checks import shown

Seconds: TypeAlias = float | int | timedelta
_LONGEST: Final = min(threading.TIMEOUT_MAX, 1e9)  # seconds; what the platform can wait


def seconds(given: Seconds, what: str) -> float:
    """A time to wait in seconds. Past (a deadline that was missed) is 0, longest is what can be."""
    found = given.total_seconds() if isinstance(given, timedelta) else given
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise TypeError(f"{what} must be seconds or a timedelta, not {type(given).__name__}")
    bounded = float(min(max(found, 0), _LONGEST))
    if math.isnan(bounded):
        raise ValueError(f"{what}={given}: a number of seconds")
    return bounded


def whole(given: object, what: str, low: int, high: int | None = MAX_VERSION) -> int:
    """A whole number, bounds included. `ValueError` for anything else."""
    if not isinstance(given, bool) and isinstance(given, SupportsIndex):
        number = operator.index(given)
        if low <= number and (high is None or number <= high):
            return number
    limits = f"{low} or more" if high is None else f"from {low} to {high}"
    raise ValueError(f"{what}={shown(given)}: a whole number, {limits}")


def timestamp(given: object, what: str) -> int:
    """A timestamp of a commit: they begin at 1."""
    return whole(given, what, 1, MAX_VERSION - 1)  # the last one marks a transaction's own writes


def directory_path(path: object, what: str, *, make: bool) -> str:
    """The path of a directory; None, for one of ours or none at all, is "".

    With `make` it must be possible to make the directory there, as far as names go.
    """
    if path is None:
        return ""
    where = os.fsdecode(os.fspath(path))  # type: ignore[call-overload]
    if not where or "\0" in where:
        raise ConfigError(f"{what}={shown(where)}: the path of a directory")
    there = os.path.abspath(where)
    while make and not os.path.lexists(there):
        there = os.path.dirname(there)
    if make and not os.path.isdir(there):
        raise ConfigError(f"{what}={shown(where)}: {there} is no directory")
    return where


class Patience:
    """How long a call may still wait: called, it says how many seconds are left.

    None at once are left when `gone()` holds: what is waited for will not come any more.
    """

    def __init__(
        self, timeout: Seconds | None, gone: Callable[[], bool], *, least: float = 0.0
    ) -> None:
        """`least` is what the call needs to find out whether there is anything to wait for."""
        self._seconds = math.inf if timeout is None else max(least, seconds(timeout, "timeout"))
        self._gone = gone
        self._deadline = time.monotonic() + self._seconds

    def __call__(self) -> float:
        return 0.0 if self._gone() else self._deadline - time.monotonic()

    def __str__(self) -> str:
        return f"{self._seconds:g}"
