"""A transactional store of a hundred lines with defects to switch on: the checkers must see each.

Single-threaded, in memory; the parts of the public API that the workload uses.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

import meles

DEFECTS = {
    "snapshot isolation": "written keys are checked at commit, read ones are not",
    "no range check": "keys that were looked up are checked at commit, scanned ranges are not",
    "check skipped": "2 % of commits are not checked",
    "snapshot too low": "2 % of transactions begin one timestamp too early",
    "snapshot left": "2 % of reads see the newest version",
    "key lost": "1 % of commits to several keys lose one of them",
    "resurrected": "0.5 % of commits vanish from one key later, the version before is back",
    "aborted visible": "2 % of refused commits leave a key behind",
    "timestamp shared": "2 % of commits take the timestamp of the one before",
    "scan skips": "1 % of scanned items are left out",
}


@dataclass(frozen=True)
class ToyItem:
    key: bytes
    version: int
    value: bytes


class ToyStore:
    """Serializable unless `defect` is one of `DEFECTS`."""

    def __init__(self, seed: int, defect: str = "") -> None:
        if defect and defect not in DEFECTS:
            raise ValueError(defect)
        self.random = random.Random(seed)
        self.defect = defect
        self.times: dict[bytes, list[tuple[int, bytes | None]]] = {}
        self.keys: list[bytes] = []
        self.last_ts = 0

    def happens(self, defect: str, share: float) -> bool:
        return self.defect == defect and self.random.random() < share

    def begin(self, update: bool) -> ToyTxn:
        late = self.last_ts and self.happens("snapshot too low", 0.02)
        return ToyTxn(self, update, self.last_ts - bool(late))

    def update(self) -> ToyTxn:
        return self.begin(True)

    def view(self) -> ToyTxn:
        return self.begin(False)

    def find(self, key: bytes, ts: int) -> tuple[int, bytes | None]:
        """(version, value) at `ts`; (0, None) when there never was one."""
        for version, value in reversed(self.times.get(key, ())):
            if version <= ts:
                return version, value
        return 0, None

    def apply(self, key: bytes, ts: int, value: bytes | None) -> None:
        if key not in self.times:
            insort(self.keys, key)
        self.times.setdefault(key, []).append((ts, value))

    def newest(self, key: bytes) -> int:
        versions = self.times.get(key)
        return versions[-1][0] if versions else 0


class ToyTxn:
    """A transaction over a `ToyStore`."""

    def __init__(self, store: ToyStore, update: bool, read_ts: int) -> None:
        self._store = store
        self._update = update
        self.read_ts = read_ts
        self.commit_ts = 0
        self._pending: dict[bytes, bytes | None] = {}
        self._reads: set[bytes] = set()
        self._ranges: list[list[bytes]] = []  # [low, high), grown as items are given

    def _look(self, key: bytes) -> tuple[int, bytes | None]:
        if key in self._pending:
            return self.read_ts, self._pending[key]
        ts = self.read_ts
        if self._store.happens("snapshot left", 0.02):
            ts = self._store.last_ts
        return self._store.find(key, ts)

    def item(self, key: bytes) -> ToyItem | None:
        if key not in self._pending:
            self._reads.add(key)
        version, value = self._look(key)
        return None if value is None else ToyItem(key, version, value)

    def iterate(
        self, *, start: bytes, stop: bytes, reverse: bool = False, limit: int | None = None
    ) -> Iterator[ToyItem]:
        covered = [stop, stop] if reverse else [start, start]
        self._ranges.append(covered)
        keys = sorted({*self._store.keys, *self._pending})
        keys = keys[bisect_left(keys, start) : bisect_left(keys, stop)]
        given = 0
        for key in reversed(keys) if reverse else keys:
            version, value = self._look(key)
            if value is None or self._store.happens("scan skips", 0.01):
                continue
            if given == limit:
                return
            given += 1
            covered[0 if reverse else 1] = key if reverse else key + b"\0"
            yield ToyItem(key, version, value)
        covered[:] = [start, stop]

    def set(self, key: bytes, value: bytes) -> None:
        self._pending[key] = value

    def delete(self, key: bytes) -> None:
        self._pending[key] = None

    def discard(self) -> None:
        self._pending = {}

    def _conflicts(self) -> bool:
        store = self._store
        if store.happens("check skipped", 0.02):
            return False
        keys = self._pending if store.defect == "snapshot isolation" else self._reads
        if any(store.newest(key) > self.read_ts for key in keys):
            return True
        if store.defect in ("snapshot isolation", "no range check"):
            return False
        return any(
            store.newest(key) > self.read_ts
            for low, high in self._ranges
            for key in store.keys[bisect_left(store.keys, low) : bisect_left(store.keys, high)]
        )

    def commit(self) -> int:
        store, pending = self._store, self._pending
        if not pending:
            return 0
        if self._conflicts():
            if store.happens("aborted visible", 0.02):
                key = store.random.choice(list(pending))
                store.apply(key, store.last_ts, pending[key])
            raise meles.ConflictError("a key this transaction read was changed")
        if not (store.last_ts > self.read_ts and store.happens("timestamp shared", 0.02)):
            store.last_ts += 1
        self.commit_ts = store.last_ts
        lost = store.happens("key lost", 0.01) and len(pending) > 1
        victim = store.random.choice(list(pending)) if lost else None
        for key, value in pending.items():
            if key != victim:
                store.apply(key, self.commit_ts, value)
        if store.happens("resurrected", 0.005):
            store.times[store.random.choice(list(pending))].pop()
        return self.commit_ts
