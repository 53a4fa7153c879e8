"""What a database should answer: a dict of version lists, written to be obviously right.

Time is the caller's: `now` is unix milliseconds. Keys lie in half-open ranges, None = unbounded.
What a compaction may have dropped is bounded by `floor`, the highest timestamp up to which
superseded versions may ever have been given up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


class Write(NamedTuple):
    """One write of a commit. `value` is None for a delete; `expiry` in unix ms, 0 = never."""

    value: bytes | None
    expiry: int = 0
    meta: int = 0
    discard: bool = False  # older versions may go
    merge: bool = False  # an operand of a merge operator


class Entry(NamedTuple):
    """A version of a key."""

    version: int
    write: Write

    def gone(self, now: int) -> bool:
        return self.write.value is None or 0 < self.write.expiry <= now


class Range(NamedTuple):
    """Keys in [low, high)."""

    low: bytes | None = None
    high: bytes | None = None

    def holds(self, key: bytes) -> bool:
        return (self.low is None or key >= self.low) and (self.high is None or key < self.high)

    def meets(self, other: Range) -> bool:
        """Whether the two have keys in common."""
        low = max(self.low or b"", other.low or b"")
        highs = [high for high in (self.high, other.high) if high is not None]
        return not highs or low < min(highs)


def prefix_range(prefix: bytes) -> Range:
    """The keys with the prefix."""
    high = prefix
    while high and high[-1] == 0xFF:
        high = high[:-1]
    return Range(prefix or None, high[:-1] + bytes([high[-1] + 1]) if high else None)


def narrowed(prefix: bytes, start: bytes | None, stop: bytes | None) -> Range:
    """The keys with the prefix in [start, stop)."""
    low, high = prefix_range(prefix)
    lows = [bound for bound in (low, start) if bound is not None]
    highs = [bound for bound in (high, stop) if bound is not None]
    return Range(max(lows) if lows else None, min(highs) if highs else None)


@dataclass
class Model:
    """All versions of all keys, the drops, and what has been given up."""

    keep: int  # num_versions_to_keep
    last_ts: int = 0
    floor: int = 0
    entries: dict[bytes, list[Entry]] = field(default_factory=dict)  # ascending by version
    drops: list[tuple[int, tuple[bytes, ...]]] = field(default_factory=list)

    # -- writing ---------------------------------------------------------------------------------

    def commit(self, writes: dict[bytes, Write]) -> int:
        """One transaction; returns its timestamp."""
        self.last_ts += 1
        for key, write in writes.items():
            self.entries.setdefault(key, []).append(Entry(self.last_ts, write))
        return self.last_ts

    def drop(self, prefixes: Iterable[bytes]) -> int:
        self.last_ts += 1
        self.drops.append((self.last_ts, tuple(prefixes)))
        return self.last_ts

    # -- reading ---------------------------------------------------------------------------------

    def hidden(self, key: bytes, version: int, ts: int) -> bool:
        """Whether a drop hides the version from a reader at `ts`."""
        return any(version <= at <= ts and key.startswith(names) for at, names in self.drops)

    def versions(self, key: bytes, ts: int) -> list[Entry]:
        """Every version a reader at `ts` may see, newest first, deleted and expired ones too."""
        found = [entry for entry in self.entries.get(key, ()) if entry.version <= ts]
        return [entry for entry in reversed(found) if not self.hidden(key, entry.version, ts)]

    def live(self, key: bytes, ts: int, now: int) -> Entry | None:
        found = self.versions(key, ts)
        return found[0] if found and not found[0].gone(now) else None

    def value(self, key: bytes, ts: int, now: int) -> bytes | None:
        entry = self.live(key, ts, now)
        return None if entry is None else entry.write.value

    def scan(
        self, keys: Range, ts: int, now: int, pending: dict[bytes, Write] | None = None,
        since: int = 0,
    ) -> list[tuple[bytes, Entry]]:  # fmt: skip
        """Live entries in key order, `pending` over them as version `ts`."""
        own = pending or {}
        found = []
        for key in sorted(self.entries.keys() | own.keys()):
            if not keys.holds(key):
                continue
            entry = Entry(ts, own[key]) if key in own else self.live(key, ts, now)
            if entry is not None and not entry.gone(now) and (entry.version > since or not since):
                found.append((key, entry))
        return found

    # -- what may be gone ------------------------------------------------------------------------

    def give_up(self, oldest_reader: int | None) -> None:
        """Versions that nobody from here on reads, at `oldest_reader` or now, may be dropped."""
        ts = self.last_ts if oldest_reader is None else min(oldest_reader, self.last_ts)
        self.floor = max(self.floor, ts)

    def must_be_there(self, key: bytes, ts: int, now: int) -> list[Entry]:
        """The versions a reader at `ts` must find when it asks for all of them, newest first."""
        kept, counted, ended = [], 0, False
        for entry in self.versions(key, ts):
            if entry.version > self.floor:
                kept.append(entry)
            elif not ended:
                if not entry.gone(now) or entry.write.merge:
                    kept.append(entry)
                if not entry.write.merge:
                    counted += 1
                    ended = counted == self.keep or entry.write.discard or entry.gone(now)
        return kept

    # -- conflicts -------------------------------------------------------------------------------

    def conflicts(
        self, read_ts: int, reads: Iterable[bytes], covered: Iterable[Range], now: int
    ) -> bool | None:
        """Whether a transaction that read this must fail; None: it may, a drop touched its reads.

        A drop of nothing the transaction could see changes nothing, so either is right then.
        """
        reads, covered = set(reads), list(covered)
        for key, found in self.entries.items():
            if found[-1].version > read_ts and (key in reads or any(r.holds(key) for r in covered)):
                return True
        dropped = [names for at, names in self.drops if at > read_ts]
        touched = False
        for names in dropped:
            touched = touched or any(key.startswith(names) for key in reads)
            touched = touched or any(r.meets(prefix_range(n)) for n in names for r in covered)
            for key in self.entries:
                seen = key in reads or any(r.holds(key) for r in covered)
                if seen and key.startswith(names) and self.live(key, read_ts, now) is not None:
                    return True
        return None if touched else False

    # -- merge operators -------------------------------------------------------------------------

    def folded(self, key: bytes, ts: int, now: int) -> tuple[bytes | None, int]:
        """Operands joined oldest first, and how many entries took part."""
        parts: list[bytes] = []
        for entry in self.versions(key, ts):
            if entry.gone(now):
                break
            parts.append(entry.write.value or b"")
            if not entry.write.merge or entry.write.discard:
                break
        return (b"".join(reversed(parts)) if parts else None), len(parts)
