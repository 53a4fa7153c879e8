"""What the writer counts, for `db.stats()`.

Runs in: supervisor.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class WriteCounters:
    """Sums since open. `bytes` are of user keys and values."""

    entries: int = 0  # with `bytes`, as of the last look: the writer counts them elsewhere
    bytes: int = 0
    log_bytes: int = 0  # of sealed logs
    syncs: int = 0
    stalls: int = 0
    stall_seconds: float = 0.0
    longest_stall: float = 0.0
    by_reason: dict[str, int] = field(default_factory=dict)
