"""What a round of stress is made of: options and a fault, drawn from a seed. Pure.

Runs in: whoever runs the stress.
Invariants: (1) the same seed draws the same rounds; (2) any options may follow any others on the
same directory; (3) everything is small, so that flushes, compactions of several levels, value-log
files and their collection all happen within seconds.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20


class Fault(Enum):
    """How a round ends, or what happens in its middle."""

    CLOSE = "close under load"
    KILL_TREE = "SIGKILL of supervisor and workers"
    KILL = "SIGKILL of the supervisor"
    KILL_IN_OPENING = "SIGKILL while opening"
    KILL_IN_CLOSING = "SIGKILL while closing"
    STOPPED_WORKERS = "SIGKILL of the supervisor, workers stopped"
    WORKER_KILLED = "SIGKILL of a worker, then close"
    WORKER_HUNG = "SIGSTOP of a worker, then close"
    NO_DESCRIPTORS = "no descriptors for a while, then SIGKILL"


_WEIGHTS: Final = {
    Fault.CLOSE: 2, Fault.KILL_TREE: 4, Fault.KILL: 4, Fault.KILL_IN_OPENING: 2,
    Fault.KILL_IN_CLOSING: 3, Fault.STOPPED_WORKERS: 2, Fault.WORKER_KILLED: 2,
    Fault.WORKER_HUNG: 1, Fault.NO_DESCRIPTORS: 1,
}  # fmt: skip


@dataclass(frozen=True)
class Round:
    """One life of the load."""

    number: int
    options: dict[str, Any]
    fault: Fault
    seconds: float  # of load before it strikes
    seed: int  # of the load
    kind: str  # of the worker it is about, if it is


def draw(seed: int, number: int, codecs: list[str]) -> Round:
    """The `number`-th round of a seed; `codecs` are those that are installed."""
    rng = random.Random(f"{seed}/{number}")
    fault = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    return Round(
        number,
        _options(rng, codecs),
        fault,
        rng.choice([0.2, 0.5, 1.0, 2.0]),
        rng.randrange(1 << 30),
        rng.choice(["flusher", "compactor", "value_gc"]),
    )


def _options(rng: random.Random, codecs: list[str]) -> dict[str, Any]:
    return {
        "sync": rng.choice(["none", "interval", "interval", "commit"]),
        "memtable_size": rng.choice([256, 256, 512, 1024]) * KIB,
        "num_memtables": rng.randint(1, 4),
        "value_threshold": rng.choice([0, 32, 300, 1024]),
        "value_log_file_size": rng.choice([1, 1, 4]) * MIB,
        "value_log_max_entries": rng.choice([100, 1000, 1_000_000]),
        "block_size": rng.choice([512, 1024, 4096]),
        "compression": rng.choice(codecs),
        "bloom_false_positive": rng.choice([0.0, 0.01, 0.3]),
        "base_table_size": rng.choice([16, 64]) * KIB,
        "base_level_size": rng.choice([64, 256]) * KIB,
        "level_size_multiplier": rng.choice([2, 4, 10]),
        "max_levels": rng.choice([4, 7]),
        "num_level_zero_tables": rng.randint(1, 4),
        "num_level_zero_tables_stall": rng.randint(5, 10),
        "num_compactors": rng.randint(1, 3),
        "block_cache_size": rng.choice([0, 64 * KIB, 8 * MIB]),
        "gc_discard_ratio": rng.choice([0.2, 0.5]),
        "num_versions_to_keep": rng.choice([1, 1, 3]),
        "compact_l0_on_close": rng.random() < 0.3,
        "worker_heartbeat": 0.1,
        "worker_hang_timeout": 2.0,
        "close_timeout": 60.0,
    }
