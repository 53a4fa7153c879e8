"""What `db.workers()` tells of a worker.

Runs in: supervisor.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A background worker. `state` is one of starting, idle, busy, hung, restarting, stopped.

    `pid` is None for a worker that is no process of its own; sizes in bytes, times in seconds.
    """

    kind: str
    name: str
    pid: int | None
    state: str
    job: str | None
    rss_bytes: int
    cpu_seconds: float
    restarts: int
