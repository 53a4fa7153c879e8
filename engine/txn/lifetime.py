"""A transaction from its mark to its end: what every one of them goes through.

Runs in: supervisor, on the thread that uses the transaction.
Owns: one read mark until the end.
Invariants: (1) a transaction ends once, whoever asks for it; (2) with its end its mark is released
and its iterators end; (3) a plain commit, of one without iterators where keys have no namespaces,
is that of the long way with fewer frames.
Fails with: what the hooks raise.

`LifetimePy` is the readable definition, the compiled twin is engine/kernel/lifetime.pxi: a
transaction that sets one key is interpreter time, and this is where most of it went.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, Self

from meles.engine.kernel import NATIVE
from meles.engine.txn.entry_buffer import EntryBufferPy
from meles.engine.txn.read_marks import Readers

if TYPE_CHECKING:
    from meles.engine.engine import Engine

_ONCE: Final = (True,)
_NO_COUNT_LIMIT: Final = 1 << 62
_NO_PART: Final = 62  # bits shifted out of a large value's size: it counts as its address


@dataclass(frozen=True, slots=True)
class TermsPy:
    """What is the same for all transactions of a database. Limits are in bytes."""

    readers: Readers
    size_limit: int
    value_limit: int
    large_limit: int
    conflicts: bool  # are detected
    managed: bool
    namespaces: bool  # keys have one, and some may be banned


class LifetimePy(EntryBufferPy):
    """Begins, commits or is discarded. The hooks at the end are for who knows the rest."""

    _engine: Engine
    _finished = True  # until there is something to finish
    _commit_ts = 0
    _quiet = False  # no change to tell subscribers about
    # Made when they are needed:
    _reads: set[bytes] | None = None
    _covered: Any = None
    _cursors: Any = None
    _order: list[bytes] | None = None

    def __init__(
        self, engine: Engine, *, update: bool, at: int | None = None, checked: bool = False
    ) -> None:
        """`checked` has conflicts detected whatever the option says, for the engine's own use."""
        if hasattr(self, "_terms"):
            raise TypeError("a transaction begins once, on terms")
        terms = engine.terms
        self._engine, self._terms = engine, terms
        self._update = update
        self._track = update and (checked or terms.conflicts)
        self._first_end = iter(_ONCE)  # taken by who ends it, for good
        self._mark = terms.readers.begin(at, True)
        self._read_ts = self._mark.ts
        self._collect(
            terms.readers.clock, terms.size_limit, terms.value_limit, _NO_COUNT_LIMIT,
            update and not terms.namespaces, terms.large_limit, _NO_PART,
        )  # fmt: skip
        self._finished = False

    def __enter__(self) -> Self:
        if self._finished or self._published.ended:
            self._check()
        return self

    def __exit__(self, kind: object, *_: object) -> Literal[False]:
        if not self._finished:
            try:
                if kind is None and self._writes:
                    self.commit()
            finally:
                if not self._finished:
                    self.discard()
        return False

    def commit(self) -> int:
        """Make the writes visible and durable as `sync` says; returns the commit timestamp.

        0 when nothing was written. `ConflictError`: nothing happened, run it again. Ends the
        transaction and its iterators whatever comes out, but for `meles.Error` in managed mode.
        """
        if self._finished or self._published.ended:
            self._check()
        if self._terms.managed and self._update:
            self._needs_ts()
        return self._commit(None)

    def discard(self) -> None:
        """End without writing. A second call, or one after commit, does nothing. Never raises."""
        if self._claim_end():
            self._finish()

    def _commit(self, ts: int | None) -> int:
        if not self._claim_end():
            self._ends_elsewhere()
        try:
            if self._writes:
                self._commit_ts = self._write(ts)
            return self._commit_ts
        finally:
            self._finish()

    def _write(self, ts: int | None) -> int:
        has_read = bool(self._reads) or self._covered is not None
        if self._terms.namespaces or self._cursors is not None:
            self._before_commit()
        done, writer = 0, self._engine.writer
        if ts is None and not self._quiet and writer is not None:
            done = writer.plain.commit(self, self._read_ts if has_read else -1)
        return done or self._commit_at_length(ts, has_read)

    def _claim_end(self) -> bool:
        """Whether the caller is the one to end it."""
        claimed = next(self._first_end, False)
        self._finished = True
        self._collecting = False
        return claimed

    def _finish(self) -> None:
        self._mark.end()
        if self._cursors is not None:
            self._end_cursors()
        self._covered = self._order = self._reads = None
        self._clear()

    # -- hooks -----------------------------------------------------------------------------------

    def _check(self) -> None:
        """Raise when it has ended, or the database has."""
        raise NotImplementedError

    def _needs_ts(self) -> NoReturn:
        """`commit` in managed mode."""
        raise NotImplementedError

    def _ends_elsewhere(self) -> NoReturn:
        """Another thread ends it at this moment."""
        raise NotImplementedError

    def _before_commit(self) -> None:
        """Only if it has iterators, or keys have namespaces."""
        raise NotImplementedError

    def _commit_at_length(self, ts: int | None, has_read: bool) -> int:
        """The commit, when it is not a plain one."""
        raise NotImplementedError

    def _end_cursors(self) -> None:
        raise NotImplementedError


if TYPE_CHECKING or NATIVE is None:
    Lifetime = LifetimePy
    Terms = TermsPy
else:
    Lifetime = NATIVE.Lifetime
    Terms = NATIVE.Terms
