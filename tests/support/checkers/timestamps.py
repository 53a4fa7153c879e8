"""The timestamp checker: does every read agree with the commit timestamps the database gave out?

Complete for what it sees, and linear: each read is one bisection, each conflict window is walked
once. It trusts the timestamps' order and nothing else:
T1 a read returns the greatest committed version <= the snapshot, or the transaction's own write;
T2 nothing that a committed writer read, keys and ranges alike, was committed to by others between
its snapshot and its commit;
T3 commit timestamps are unique, above the snapshot, and every snapshot holds what was acknowledged
before it began;
T4 what was aborted or discarded is nowhere;
T5 a scan gives exactly the live keys of its snapshot, in order.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from checkers.history import COMMITTED, Anomaly, Read, Scan, Stored, Transaction, Write

ABSENT = (None, None)
MOST = 20  # anomalies worth listing
Version = tuple[int, bytes | None]  # commit timestamp, value


class _Committed:
    """Every version of every key by timestamp, and who wrote what."""

    def __init__(
        self, history: Sequence[Transaction], initial: dict[bytes, Sequence[Version]]
    ) -> None:
        self.times: dict[bytes, list[int]] = {}
        self.values: dict[bytes, list[bytes | None]] = {}
        self.in_order = sorted(
            (t for t in history if t.outcome == COMMITTED and t.commit_ts), key=_commit_ts
        )
        self.order = [t.commit_ts for t in self.in_order]
        for key, versions in initial.items():
            for ts, value in sorted(versions):
                self._add(key, ts, value)
        for txn in self.in_order:
            for key, value in txn.writes().items():
                self._add(key, txn.commit_ts, value)
        self.keys = sorted(self.times)
        self.lost = {
            op.value
            for t in history
            if t.outcome != COMMITTED
            for op in t.ops
            if isinstance(op, Write) and op.value is not None
        }
        self.written = {value for values in self.values.values() for value in values}

    def _add(self, key: bytes, ts: int, value: bytes | None) -> None:
        self.times.setdefault(key, []).append(ts)
        self.values.setdefault(key, []).append(value)

    def at(self, key: bytes, ts: int) -> tuple[int | None, bytes | None]:
        """(version, value) that a reader at `ts` sees; `ABSENT` for a deleted or unknown key."""
        place = bisect_right(self.times.get(key, ()), ts) - 1
        if place < 0 or self.values[key][place] is None:
            return ABSENT
        return self.times[key][place], self.values[key][place]

    def between(self, low: int, high: int) -> list[Transaction]:
        """Who committed in (low, high)."""
        return self.in_order[bisect_right(self.order, low) : bisect_left(self.order, high)]

    def keys_in(self, low: bytes | None, high: bytes | None) -> list[bytes]:
        first = 0 if low is None else bisect_left(self.keys, low)
        last = len(self.keys) if high is None else bisect_left(self.keys, high)
        return self.keys[first:last]


def _commit_ts(txn: Transaction) -> int:
    return txn.commit_ts


def check_timestamps(
    history: Sequence[Transaction],
    *,
    initial: dict[bytes, Sequence[Version]] | None = None,
    stored: Iterable[Stored] = (),
) -> list[Anomaly]:
    """What is wrong with a history; nothing if it is strictly serializable by its timestamps.

    `initial` are the versions from before it, `stored` all versions found after it.
    """
    committed = _Committed(history, initial or {})
    found: list[Anomaly] = []
    found += _clocks(history)
    found += _remains(committed, stored)
    for txn in history:
        if len(found) >= MOST:
            break
        found += _reads(txn, committed)
        if txn.outcome == COMMITTED and txn.commit_ts:
            found += _window(txn, committed)
    return found[:MOST]


# -- T1 and T5 -----------------------------------------------------------------------------------


def _reads(txn: Transaction, committed: _Committed) -> list[Anomaly]:
    found = []
    own: dict[bytes, bytes | None] = {}
    for op in txn.ops:
        if isinstance(op, Write):
            own[op.key] = op.value
        elif isinstance(op, Read):
            seen = (op.version, op.value)
            found += _compare(txn, op.key, seen, own, committed)
        else:
            found += _scan(txn, op, own, committed)
    return found


def _expected(
    txn: Transaction, key: bytes, own: dict[bytes, bytes | None], committed: _Committed
) -> tuple[int | None, bytes | None]:
    if key not in own:
        return committed.at(key, txn.read_ts)
    return ABSENT if own[key] is None else (txn.read_ts, own[key])


def _compare(
    txn: Transaction,
    key: bytes,
    seen: tuple[int | None, bytes | None],
    own: dict[bytes, bytes | None],
    committed: _Committed,
) -> list[Anomaly]:
    expected = _expected(txn, key, own, committed)
    if seen == expected:
        return []
    version, value = seen
    if value in committed.lost and key not in own:
        kind = "aborted read"
    elif value is not None and value not in committed.written and value not in own.values():
        kind = "unwritten value"
    elif version is not None and version > txn.read_ts:
        kind = "future read"
    elif value is None:
        kind = "missing"
    else:
        kind = "stale read" if expected != ABSENT else "resurrected"
    return [Anomaly(kind, f"{_name(txn)} saw {key!r} as {seen}, expected {expected}")]


def _scan(
    txn: Transaction, op: Scan, own: dict[bytes, bytes | None], committed: _Committed
) -> list[Anomaly]:
    keys = [item[0] for item in op.items]
    if keys != sorted(set(keys), reverse=op.reverse):
        return [Anomaly("scan order", f"{_name(txn)} got keys {keys}")]
    seen = {key: (version, value) for key, version, value in op.items}
    wanted = {*committed.keys_in(op.low, op.high), *seen}
    wanted.update(
        k for k in own if (op.low is None or k >= op.low) and (op.high is None or k < op.high)
    )
    found = []
    for key in wanted:
        found += _compare(txn, key, seen.get(key, ABSENT), own, committed)
    return found


# -- T2 ------------------------------------------------------------------------------------------


def _window(txn: Transaction, committed: _Committed) -> list[Anomaly]:
    """Commits of others between snapshot and commit that touch what was read."""
    others = committed.between(txn.read_ts, txn.commit_ts)
    if not others:
        return []
    own: set[bytes] = set()
    keys: set[bytes] = set()
    ranges: list[Scan] = []
    for op in txn.ops:
        if isinstance(op, Write):
            own.add(op.key)
        elif isinstance(op, Scan):
            ranges.append(op)
        elif op.key not in own:  # a look at one's own write is no read
            keys.add(op.key)
    found = []
    for other in others:
        for key in other.writes():
            if key in keys:
                kind = "conflict missed"
            elif any(_covers(scan, key) for scan in ranges):
                kind = "range conflict missed"
            else:
                continue
            found.append(
                Anomaly(kind, f"{_name(txn)} read {key!r}, {_name(other)} wrote it meanwhile")
            )
    return found


def _covers(scan: Scan, key: bytes) -> bool:
    return (scan.low is None or key >= scan.low) and (scan.high is None or key < scan.high)


# -- T3 ------------------------------------------------------------------------------------------


def _clocks(history: Sequence[Transaction]) -> list[Anomaly]:
    found = []
    taken: dict[int, Transaction] = {}
    for txn in history:
        if not txn.commit_ts:
            continue
        if txn.commit_ts in taken:
            twin = _name(taken[txn.commit_ts])
            found.append(Anomaly("timestamp used twice", f"{_name(txn)} and {twin}"))
        taken[txn.commit_ts] = txn
        if txn.commit_ts <= txn.read_ts:
            found.append(Anomaly("commit not after snapshot", _name(txn)))
    events = [(t.began, 0, t) for t in history]
    events += [(t.ended, 1, t) for t in history if t.outcome == COMMITTED and t.commit_ts]
    events.sort(key=lambda event: event[0])
    acknowledged = 0
    for _, is_end, txn in events:
        if is_end:
            acknowledged = max(acknowledged, txn.commit_ts)
        elif txn.read_ts < acknowledged:
            text = f"{_name(txn)} began after {acknowledged} was acknowledged"
            found.append(Anomaly("snapshot behind real time", text))
    return found


# -- T4 ------------------------------------------------------------------------------------------


def _remains(committed: _Committed, stored: Iterable[Stored]) -> list[Anomaly]:
    """Versions that are there and that nobody committed."""
    found = []
    for key, version, value in stored:
        times = committed.times.get(key, [])
        at = bisect_left(times, version)
        if at == len(times) or times[at] != version or committed.values[key][at] != value:
            kind = "aborted write" if value in committed.lost else "unwritten version"
            found.append(Anomaly(kind, f"{key!r} has {value!r} at {version}"))
    return found


def _name(txn: Transaction) -> str:
    return f"T{txn.number}@{txn.read_ts}..{txn.commit_ts}"
