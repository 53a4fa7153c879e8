"""Sequences: numbers that never repeat, leased in blocks under a key.

Runs in: supervisor, any thread.
Invariants: (1) the key holds, as 8 bytes big-endian, the first number no lease covers; (2) a
number is given only from a lease that is on the medium, so a crash wastes the rest of a lease and
repeats nothing; (3) two sequences on one key, also in turn after reopening, get disjoint leases.
Fails with: `ConfigError` (bandwidth), what committing raises. As Badger's GetSequence.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from meles.engine.engine import Engine
from meles.engine.errors import ClosedError, ConfigError, CorruptionError, Error
from meles.engine.option_checks import shown
from meles.engine.txn.entries import BytesLike, writable_key

if TYPE_CHECKING:
    from meles.engine.txn.txn import Txn

_WIDTH: Final = 8
_LARGEST: Final = (1 << 64) - 1


class Sequence:
    """An iterator of growing whole numbers from 0 to 2**64 - 1; `next(seq)` from any thread.

    A context manager: leaving `with` releases. What was leased and neither given out nor released
    is skipped, also after a crash; two sequences under one key share no number.
    """

    def __init__(
        self,
        engine: Engine,
        transact: Callable[[Callable[[Txn], int]], int],
        key: BytesLike,
        bandwidth: int,
    ) -> None:
        if type(bandwidth) is not int or not 0 < bandwidth <= _LARGEST:
            raise ConfigError(f"bandwidth={shown(bandwidth)}: a whole number of at least 1")
        self._engine = engine
        self._transact = transact
        self._key = writable_key(key)
        self._bandwidth = bandwidth
        self._lock = threading.Lock()
        self._next = 0
        self._leased = 0  # first number that is not ours
        with self._lock:
            self._lease_locked()

    def _stored(self, txn: Txn) -> int:
        data = txn.get(self._key)
        if data is None:
            return 0
        if len(data) != _WIDTH:
            raise CorruptionError(
                f"a sequence's key holds {len(data)} bytes, not {_WIDTH}",
                path=self._engine.store.dirs.tables.path, offset=0, kind="sequence",
                hint="use a key that nothing else writes",
            )  # fmt: skip
        return int.from_bytes(data, "big")

    def _lease_locked(self) -> None:
        def take(txn: Txn) -> int:
            first = self._stored(txn)
            if first > _LARGEST - self._bandwidth:
                raise Error("the sequence has no numbers left", hint="use another key")
            txn.set(self._key, (first + self._bandwidth).to_bytes(_WIDTH, "big"))
            return first

        first = self._transact(take)
        self._engine.check_writable().sync()
        self._next, self._leased = first, first + self._bandwidth

    def __iter__(self) -> Sequence:
        return self

    def __next__(self) -> int:
        """The next number. Once per `bandwidth` numbers it commits and waits for the medium; that
        may raise what writing raises, and `meles.Error` when there are no numbers left.
        """
        with self._lock:
            self._engine.check_open()
            if self._next >= self._leased:
                self._lease_locked()
            number = self._next
            self._next += 1
            return number

    def release(self) -> None:
        """Give back what is left of the lease, if nobody leased behind it. Usable again after: the
        next number leases anew. A second call does nothing.
        """
        with self._lock:
            unused, leased = self._next, self._leased
            if unused >= leased:
                return

            def give_back(txn: Txn) -> int:
                if self._stored(txn) == leased:
                    txn.set(self._key, unused.to_bytes(_WIDTH, "big"))
                return 0

            self._transact(give_back)
            self._next = self._leased = 0

    def __enter__(self) -> Sequence:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.release()
        except ClosedError:
            return
