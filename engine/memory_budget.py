"""Sharing a memory budget out: which sizes follow from `memory_budget`, and whether it is enough.

Runs in: supervisor.
Invariants: (1) pure: the same options give the same sizes; (2) what the caller chose is kept, only
sizes left open are derived; (3) fixed needs and all sizes together stay within the budget.
Fails with: `Refused`, saying how much is needed and what for.

The budget covers what is resident in each process, pages of mapped files included, and those of
shared libraries in each of them. The figures were measured (ARCHITECTURE.md, section 14).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from meles.engine.option_checks import KIB, MIB, Refused

DERIVED: Final = ("memtable_size", "block_cache_size", "index_cache_size", "worker_memory_limit")
_WITHOUT_BUDGET: Final[dict[str, int | None]] = {
    "memtable_size": 64 * MIB,
    "block_cache_size": 256 * MIB,
    "index_cache_size": 0,
    "worker_memory_limit": None,
}
_HOST_BYTES: Final = 28 * MIB  # the interpreter with the engine: 26 MiB
_WORKER_BYTES: Final = 22 * MIB  # a worker that waits: 21 MiB
_COMPACTING_BYTES: Final = 16 * MIB  # what a compactor adds while it works
_FLUSHING: Final = 3  # memtables' worth a flush takes: 1.3 compiled, 3.3 in plain Python
_LEAST_PAGES: Final = 4 * MIB  # of mapped files, beside a block cache that is full
_LEAST_MEMTABLE: Final = 64 * KIB
_LEAST_WORKER: Final = 96 * MIB  # stacks and arenas count too
_MEMTABLE_SHARE: Final = 0.4
_INDEX_SHARE: Final = 0.25  # of what the memtables leave
_ROW_BYTES: Final = 320  # of a decoded index, with keys of 64 bytes


def block_room(block_size: int) -> int:
    """Bytes in the block cache that one block may take once keys are decoded."""
    return 4 * block_size


def index_room(base_table_size: int, block_size: int) -> int:
    """Bytes in the index cache that index and filter of one table may take."""
    return base_table_size // block_size * _ROW_BYTES + base_table_size // 64 + 4 * KIB


def sizes_for(values: Mapping[str, Any]) -> dict[str, int | None]:
    """Every size of `DERIVED`, those that are None in `values` derived. Raises `Refused`."""
    budget = values["memory_budget"]
    chosen = {name: values[name] for name in DERIVED}
    if budget is None:
        return {n: _WITHOUT_BUDGET[n] if v is None else v for n, v in chosen.items()}
    if chosen["index_cache_size"] == 0:
        raise Refused("nothing while index_cache_size=0 lets indexes grow without bound")
    memtables = values["num_memtables"] + 1 + _FLUSHING
    least = {
        "memtable_size": memtables * _LEAST_MEMTABLE,
        "block_cache_size": block_room(values["block_size"]),
        "index_cache_size": index_room(values["base_table_size"], values["block_size"]),
    }
    taken = {
        "memtable_size": memtables * (chosen["memtable_size"] or 0),
        "block_cache_size": chosen["block_cache_size"] or 0,
        "index_cache_size": chosen["index_cache_size"] or 0,
    }
    fixed = _fixed(values)
    open_ = [name for name in least if chosen[name] is None]
    needed = fixed + sum(taken.values()) + sum(least[name] for name in open_)
    if needed > budget:
        raise Refused(_needs(needed, fixed, taken, {name: least[name] for name in open_}))
    left = budget - fixed - sum(taken.values()) - sum(least[name] for name in open_)
    if chosen["memtable_size"] is None:
        share = int(left * _MEMTABLE_SHARE) + least["memtable_size"]
        plain = _WITHOUT_BUDGET["memtable_size"] or 0
        chosen["memtable_size"] = min(share // memtables, plain)
        left -= memtables * chosen["memtable_size"] - least["memtable_size"]
    if chosen["index_cache_size"] is None:
        part = _INDEX_SHARE if chosen["block_cache_size"] is None else 1.0
        share = int(left * part)
        chosen["index_cache_size"] = least["index_cache_size"] + share
        left -= share
    if chosen["block_cache_size"] is None:
        chosen["block_cache_size"] = least["block_cache_size"] + left
    if chosen["worker_memory_limit"] is None and values["workers"] == "process":
        chosen["worker_memory_limit"] = max(_LEAST_WORKER, budget // 2)
    return chosen


def page_room(values: Mapping[str, Any], cached: int) -> int:
    """Bytes of files that may be resident in the host: of its memtables' logs, and of tables and
    value-log files that readers look at in place. With `cached` bytes in the block cache: both are
    for blocks and share what there is.
    """
    others: int = _FLUSHING * values["memtable_size"] + values["index_cache_size"] + cached
    left: int = values["memory_budget"] - _fixed(values) - others
    return _LEAST_PAGES + max(0, left)


def _fixed(values: Mapping[str, Any]) -> int:
    """What the processes take before there is any data."""
    compactors: int = max(1, values["num_compactors"])
    processes = compactors + 2 if values["workers"] == "process" else 0
    return _HOST_BYTES + _LEAST_PAGES + processes * _WORKER_BYTES + compactors * _COMPACTING_BYTES


def _needs(needed: int, fixed: int, taken: Mapping[str, int], least: Mapping[str, int]) -> str:
    parts = [f"{fixed:,} for the processes"]
    parts += [f"{size:,} for the {name} given" for name, size in taken.items() if size]
    parts += [f"{size:,} for the least {name}" for name, size in least.items()]
    return f"nothing, or at least {needed:,} bytes: {', '.join(parts)}"
