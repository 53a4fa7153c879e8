"""Random transactions over a few hot and many cold keys, recorded for the checkers.

Half of the transactions go to 5 keys, half to 100: a checker that waits for collisions on 100 keys
alone misses most rare defects. Each client is a generator that stops between two operations, so
that a runner decides who goes on: threads, or a seeded choice in one thread.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import meles
from checkers.append import Append, ListTxn, Look
from checkers.history import ABORTED, COMMITTED, Read, Scan, Stored, Transaction, Write
from checkers.timestamps import Version

HOT, COLD = 5, 100
RETIRE = 64  # appends per key, on average, after which lists begin anew under other keys
ACTS = ("get", "miss", "scan", "write")
BALLAST_EVERY, BALLAST = 16, 40  # transactions between two batches of other keys, keys of a batch
BALLAST_KEYS = 20_000
READING, WRITING = (50, 10, 40, 0), (30, 5, 15, 50)  # weights of the acts, read-only or not


@dataclass
class Group:
    """Keys under one prefix. Lists move on to the next generation when they have grown."""

    name: bytes
    size: int
    generation: int = 0
    appends: int = 0

    def keys(self) -> list[bytes]:
        return [b"%s/%04d/%03d" % (self.name, self.generation, n) for n in range(self.size)]

    def range(self) -> tuple[bytes, bytes]:
        prefix = b"%s/%04d" % (self.name, self.generation)
        return prefix + b"/", prefix + b"0"  # "0" is the byte after "/"

    def grown(self) -> None:
        self.appends += 1
        if self.appends >= RETIRE * self.size:
            self.appends = 0
            self.generation += 1


@dataclass
class Workload:
    """`appends`: clients grow lists; else they set and delete single values, most of them blindly.

    After a run: `history` for the timestamp checker and, with `appends`, `lists` for the other.
    """

    db: Any
    seed: int
    transactions: int
    appends: bool
    clients: int = 8
    ballast: bool = False  # other keys between, so that logs, tables and levels fill
    name: bytes = b""  # its keys begin so: the lists checker wants keys that are new
    history: list[Transaction] = field(default_factory=list)
    lists: list[ListTxn] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tickets = itertools.count(1)
        self._numbers = iter(range(self.transactions))
        self._values = itertools.count(1)
        kind = self.name + (b"list" if self.appends else b"value")
        self._groups = (Group(kind + b"-hot", HOT), Group(kind + b"-cold", COLD))
        self.before = self.look_at_all()

    @property
    def conflicts(self) -> int:
        return sum(txn.outcome == ABORTED for txn in self.history)

    # -- clients ---------------------------------------------------------------------------------

    def client(self, number: int) -> Iterator[None]:
        """Transactions until all are done; stops between operations."""
        rng = random.Random(f"{self.seed}/{number}")
        for txn_number in self._numbers:
            yield from self._transaction(txn_number, number, rng)
            if self.ballast and txn_number % BALLAST_EVERY == 0:
                with self.db.write_batch() as batch:
                    for other in rng.sample(range(BALLAST_KEYS), BALLAST):
                        batch.set(b"m/%05d" % other, b"%d" % txn_number * 30)

    def _transaction(self, number: int, client: int, rng: random.Random) -> Iterator[None]:
        group = rng.choice(self._groups)
        reading = rng.random() < 0.25
        began = next(self._tickets)
        txn = self.db.view() if reading else self.db.update()
        step = _Step(self, txn, Transaction(number, client, began, txn.read_ts), group, rng)
        yield
        for act in rng.choices(ACTS, READING if reading else WRITING, k=rng.randint(1, 4)):
            yield from getattr(step, act)()
            yield
        self._end(txn, step, discard=rng.random() < 0.03)

    def _end(self, txn: Any, step: _Step, *, discard: bool) -> None:
        record = step.record
        if discard:
            txn.discard()
        else:
            try:
                record.commit_ts = txn.commit()
                record.outcome = COMMITTED
            except meles.ConflictError:
                record.outcome = ABORTED
        record.ended = next(self._tickets)
        self.history.append(record)
        if self.appends:
            done = record.outcome == COMMITTED
            self.lists.append(
                ListTxn(record.number, record.client, record.began, record.ended, done, step.looks)
            )

    # -- before and after ------------------------------------------------------------------------

    def look_at_all(self) -> dict[bytes, Version]:
        """Every key of the workload with version and value, in one snapshot."""
        txn = self.db.view()
        found = {
            item.key: (item.version, item.value)
            for group in self._groups
            for item in txn.iterate(start=group.name + b"/", stop=group.name + b"0")
        }
        txn.discard()
        return found

    def initial(self) -> dict[bytes, list[Version]]:
        return {key: [version] for key, version in self.before.items()}

    def finish(self) -> dict[bytes, tuple[int, ...]]:
        """A last transaction reads everything; returns the lists as they ended."""
        began = next(self._tickets)
        txn = self.db.view()
        record = Transaction(self.transactions, self.clients, began, txn.read_ts)
        ended = {}
        for group in self._groups:
            for reverse in (False, True):
                low, high = group.name + b"/", group.name + b"0"
                items = [
                    (item.key, item.version, item.value)
                    for item in txn.iterate(start=low, stop=high, reverse=reverse)
                ]
                record.ops.append(Scan(low, high, reverse, tuple(items)))
                ended.update((key, _elements(value)) for key, _, value in items)
        txn.discard()
        record.ended = next(self._tickets)
        self.history.append(record)
        return ended if self.appends else {}

    def stored(self) -> list[Stored]:
        """Every version that is still there, for a database that can list them."""
        with self.db.view() as txn:
            return [
                Stored(item.key, item.version, None if item.deleted else item.value)
                for group in self._groups
                for item in txn.iterate(group.name + b"/", all_versions=True)
            ]

    def new_value(self) -> int:
        return next(self._values)


class _Step:
    """The operations of one transaction, each done and recorded."""

    def __init__(
        self, work: Workload, txn: Any, record: Transaction, group: Group, rng: random.Random
    ) -> None:
        self._work = work
        self._txn = txn
        self._group = group
        self._keys = group.keys()
        self._rng = rng
        self._range = group.range()
        self.record = record
        self.looks: list[Append | Look] = []

    def _look(self, key: bytes) -> bytes | None:
        item = self._txn.item(key)
        value: bytes | None = None if item is None else item.value
        self.record.ops.append(Read(key, None if item is None else item.version, value))
        if self._work.appends:
            self.looks.append(Look(key, _elements(value)))
        return value

    def get(self) -> Iterator[None]:
        self._look(self._rng.choice(self._keys))
        return iter(())

    def miss(self) -> Iterator[None]:
        self.record.ops.append(Read(key := self._keys[0] + b"/none", None, None))
        if self._txn.item(key) is not None:
            raise AssertionError(f"{key!r} was never written")
        return iter(())

    def write(self) -> Iterator[None]:
        key = self._rng.choice(self._keys)
        number = self._work.new_value()
        value: bytes | None = b"%d" % number
        if self._work.appends:
            before = self._look(key)
            value = b"%d" % number if before is None else b"%s,%d" % (before, number)
            yield
            self.looks.append(Append(key, number))
            self._group.grown()
        elif self._rng.random() < 0.3:
            value = None
        if value is None:
            self._txn.delete(key)
        else:
            self._txn.set(key, value)
        self.record.ops.append(Write(key, value))

    def scan(self) -> Iterator[None]:
        """All of the group or a part, in either direction, to the end or less far."""
        rng = self._rng
        low, high = self._range
        if rng.random() < 0.5:
            low, high = sorted(rng.choices(self._keys, k=2))
        reverse = rng.random() < 0.5
        wanted = rng.choice((None, 1, 2, 5))  # items taken before the iterator is left alone
        limit = rng.choice((None, None, 3))
        given: list[tuple[bytes, int, bytes]] = []
        cursor = self._txn.iterate(start=low, stop=high, reverse=reverse, limit=limit)
        exhausted = False
        while wanted is None or len(given) < wanted:
            item = next(cursor, None)
            if item is None:
                exhausted = len(given) != limit
                break
            given.append((item.key, item.version, item.value))
            if len(given) == 1:
                yield
        if rng.random() < 0.5:
            cursor.close()
        if not exhausted and not given:
            return
        if not exhausted:
            last = given[-1][0]
            low, high = (last, high) if reverse else (low, last + b"\0")
        self.record.ops.append(Scan(low, high, reverse, tuple(given)))
        if self._work.appends:
            found = {key: value for key, _, value in given}
            self.looks += [
                Look(key, _elements(found.get(key))) for key in self._keys if low <= key < high
            ]


def _elements(value: bytes | None) -> tuple[int, ...]:
    return tuple(map(int, value.split(b","))) if value else ()
