"""How large each level should be, and how far it is from that. Pure.

Runs in: supervisor.
Invariants: (1) the base level is at least 1 and never lies below a level that holds data: L0 is
compacted into it directly, and what it skipped would then hide newer entries; (2) the last level is
never over its target, so scores always lead somewhere.
The targets follow Badger's: from the last level's real size up, each level a multiplier smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from meles.engine.compaction.in_flight import InFlight
from meles.engine.manifest.version import Version
from meles.engine.options import Options

_LOWEST_SCORE: Final = 0.01  # a nearly empty level does not make the one above it infinitely urgent


@dataclass(frozen=True, slots=True)
class Targets:
    """Per level: wanted bytes (0 for L0, which counts tables) and bytes of one table."""

    level_sizes: tuple[int, ...]
    table_sizes: tuple[int, ...]
    base_level: int


@dataclass(frozen=True, slots=True)
class LevelScore:
    """`score` >= 1: over target; `adjusted` discounts a level whose next one is fuller still."""

    level: int
    score: float
    adjusted: float


def level_targets(version: Version, options: Options) -> Targets:
    """Wanted sizes, and the level L0 goes to."""
    sizes = [level.size for level in version.levels]
    last = len(sizes) - 1
    wanted = [0] * len(sizes)
    at_size = sizes[last]
    for level in range(last, 0, -1):
        wanted[level] = max(at_size, options.base_level_size)
        at_size //= options.level_size_multiplier
    base = max(
        (level for level in range(1, last + 1) if wanted[level] <= options.base_level_size),
        default=1,
    )
    tables = [options.memtable_size]
    for level in range(1, last + 1):
        tables.append(
            options.base_table_size if level <= base
            else tables[-1] * options.table_size_multiplier
        )  # fmt: skip
    return Targets(tuple(wanted), tuple(tables), _slide(base, sizes, wanted))


def _slide(base: int, sizes: list[int], wanted: list[int]) -> int:
    """Move the base level over empty levels, never past one with data."""
    last = len(sizes) - 1
    base = min(base, next((level for level in range(1, last) if sizes[level]), base))
    while base < last - 1 and not sizes[base] and not sizes[base + 1]:
        base += 1
    if base < last and not sizes[base] and sizes[base + 1] < wanted[base + 1]:
        base += 1
    return base


def scores(
    version: Version, targets: Targets, in_flight: InFlight, options: Options
) -> list[LevelScore]:
    """One score per level, L0 first. Bytes that are already on their way down do not count."""
    plain = [len(version.levels[0]) / options.num_level_zero_tables]
    for level in range(1, len(version.levels)):
        staying = version.levels[level].size - in_flight.bytes_leaving(level)
        plain.append(staying / targets.level_sizes[level])
    adjusted = plain.copy()
    above = 0
    for level in range(targets.base_level, len(plain)):
        if adjusted[above] >= 1:
            adjusted[above] /= max(plain[level], _LOWEST_SCORE)
        above = level
    return [LevelScore(level, plain[level], adjusted[level]) for level in range(len(plain))]
