"""The wall clock that expiry is judged by.

Runs in: supervisor.
The one place that asks for it, so that what expires when is one decision, which tests can make too.
A worker is told the time in its job.
"""

from __future__ import annotations

from time import time_ns

_NS_PER_MS = 1_000_000


def now_ms() -> int:
    """Unix milliseconds."""
    return time_ns() // _NS_PER_MS
