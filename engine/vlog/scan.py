"""Walking the entries of a value-log file, and finding them again behind damage.

Runs in: supervisor.
Invariants: (1) pure over a buffer; (2) an entry counts only if its checksum holds at its own
offset, so a copy of an entry inside a user's value is never taken for one; (3) the search behind
damage is bounded, and says when it gave up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from meles.engine.codec.checksum import crc32c
from meles.engine.codec.header import HEADER_BYTES
from meles.engine.ids import MAX_VERSION
from meles.engine.vlog.layout import CHECKED_FROM, ENTRY, ENTRY_BYTES, POINTER

_WINDOW: Final = 64 << 10
_ZEROS: Final = bytes(_WINDOW + ENTRY_BYTES)  # what a file grew by but was never written
_SEARCH_BYTES: Final = 8 << 20  # non-zero positions tried per file: about two seconds
_CHECK_BYTES: Final = 4 << 30  # bytes checksummed in doing so: about as long again
_CHECK_COST: Final = 4096  # bytes that could be checksummed while a check is set up
_LARGE: Final = 1 << 20  # entries longer than this are tried last: each costs a long checksum


@dataclass(frozen=True, slots=True)
class Walk:
    """Valid entries lie in [start, end) except for `holes`, (offset, length) in bytes.

    `clean_end` and `clean_entries` describe the part before the first hole. `known` is False when
    the search behind the last hole gave up: bytes up to `end` count though nothing was found there.
    """

    end: int
    entries: int
    clean_end: int
    clean_entries: int
    holes: tuple[tuple[int, int], ...] = ()
    known: bool = True


@dataclass(slots=True)
class _Budget:
    positions: int = _SEARCH_BYTES
    checks: int = _CHECK_BYTES
    more: int = field(default=0, init=False)  # see `run_of_entries`


def run_of_entries(
    view: memoryview, file_id: int, start: int, stop: int, more: int = 0
) -> tuple[int, int]:
    """(end, entries) of the unbroken run of valid entries that begins at `start`.

    `more`: bytes an entry takes beside its header and the length it says (a sealed one).
    """
    at, entries, last = start, 0, stop - ENTRY_BYTES
    read, seed_of = ENTRY.unpack_from, POINTER.pack
    while at <= last:
        crc, length, _ = read(view, at)
        after = at + ENTRY_BYTES + length + more
        if after > stop:
            break
        seed = crc32c(seed_of(file_id, at, length))
        if crc32c(view[at + CHECKED_FROM : after], seed) != crc:
            break
        at = after
        entries += 1
    return at, entries


def walk(
    view: memoryview, file_id: int, stop: int, start: int = HEADER_BYTES, more: int = 0
) -> Walk:
    """Find every valid entry of logical file `file_id` in [start, stop).

    `start` must be the beginning of an entry; `more` as for `run_of_entries`. What
    follows the last valid entry is not counted: it is a torn tail, unless the search for entries in
    it gave up.
    """
    end, entries = run_of_entries(view, file_id, start, stop, more)
    clean_end, clean_entries = end, entries
    holes: list[tuple[int, int]] = []
    budget = _Budget()
    budget.more = more
    while end < stop:
        found = _next_entry(view, file_id, end, stop, budget)
        if found is None:
            if budget.positions < 0 or budget.checks < 0:
                holes.append((end, stop - end))
                return Walk(stop, entries, clean_end, clean_entries, tuple(holes), known=False)
            break
        holes.append((end, found - end))
        end, count = run_of_entries(view, file_id, found, stop, more)
        entries += count
    return Walk(end, entries, clean_end, clean_entries, tuple(holes))


def _is_entry(view: memoryview, file_id: int, at: int, stop: int, budget: _Budget) -> bool:
    """Whether a valid entry begins here."""
    if at + ENTRY_BYTES > stop:
        return False
    crc, length, _ = ENTRY.unpack_from(view, at)
    after = at + ENTRY_BYTES + length + budget.more
    if after > stop:
        return False
    budget.checks -= length + _CHECK_COST
    seed = crc32c(POINTER.pack(file_id, at, length))
    return bool(crc32c(view[at + CHECKED_FROM : after], seed) == crc)


def _next_entry(view: memoryview, file_id: int, bad: int, stop: int, budget: _Budget) -> int | None:
    """The first valid entry behind the invalid one at `bad`; None: none, or the budget is spent."""
    if bad + ENTRY_BYTES <= stop:  # its length may be sound
        after = bad + ENTRY_BYTES + ENTRY.unpack_from(view, bad)[1] + budget.more
        if _is_entry(view, file_id, after, stop, budget):
            return int(after)
    large: list[int] = []
    for base in range(bad + 1, stop - ENTRY_BYTES + 1, _WINDOW):
        window = bytes(view[base : base + _WINDOW + ENTRY_BYTES])
        if window == _ZEROS[: len(window)]:
            continue
        budget.positions -= _WINDOW
        if budget.positions < 0:
            return None
        for at in range(base, min(base + _WINDOW, stop - ENTRY_BYTES + 1)):
            _, length, version = ENTRY.unpack_from(window, at - base)
            if at + ENTRY_BYTES + length + budget.more > stop or not 0 < version <= MAX_VERSION:
                continue
            if budget.checks < 0:
                return None
            if length > _LARGE:
                large.append(at)
            elif _is_entry(view, file_id, at, stop, budget):
                return at
    for at in large:
        if budget.checks < 0:
            return None
        if _is_entry(view, file_id, at, stop, budget):
            return at
    return None
