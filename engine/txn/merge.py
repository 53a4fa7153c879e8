"""Merge operators: operands collected under a key and folded in the background.

Runs in: supervisor; folding on a thread of the operator's own.
Owns: that thread.
Invariants: (1) `add` writes without reading, so it never conflicts; (2) operands fold oldest first,
as they were committed; (3) a fold is a transaction that reads every operand: one added meanwhile
makes it conflict and run again, so none is lost; (4) a fold replaces its operands by one plain
entry that says older versions may go, so versions do not pile up; (5) a fold too large for one
transaction is not written: the operands stay and `get` folds them each time.
Fails with: `ClosedError` after `stop`, `KeyNotFoundError` from `get`, what committing raises.
As Badger's MergeOperator, except that the fold is a new version: nothing is written into the past.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from meles.engine.arguments import Seconds, seconds
from meles.engine.codec.entry import META_MERGE
from meles.engine.engine import Engine
from meles.engine.errors import (
    ClosedError,
    ConflictError,
    Error,
    KeyNotFoundError,
    TransactionTooBigError,
)
from meles.engine.option_checks import shown
from meles.engine.txn.entries import BytesLike, as_bytes, writable_key

if TYPE_CHECKING:
    from meles.engine.txn.txn import Txn

log = logging.getLogger("meles.merge")
Fold = Callable[[bytes, bytes], bytes]
_JOIN_SECONDS = 30.0


class MergeOperator:
    """`add` operands, `get` their fold. `fn(existing, new)` must not change its arguments.

    Any thread may use it. A context manager: leaving `with` stops it. An error of `fn` is raised by
    `get` and `stop`; in the background it is logged and folding ends.
    """

    def __init__(
        self,
        engine: Engine,
        begin: Callable[[], Txn],
        key: BytesLike,
        fn: Fold,
        *,
        every: Seconds,
    ) -> None:
        """`every` is seconds between folds."""
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {type(fn).__name__}")
        pause = seconds(every, "every")
        if not pause:
            raise ValueError(f"every={shown(every)}: more than 0 seconds")
        self._engine = engine
        self._begin = begin
        self._key = writable_key(key)
        engine.check_namespace(self._key)
        self._fn = fn
        self._every = pause
        self._refusal: Callable[[], Exception] | None = None
        self._stop = threading.Event()
        self._added = threading.Event()
        self._told = ""  # why folding fails, since it last did not
        self._thread = threading.Thread(target=self._run, name="meles-merge", daemon=True)
        self._thread.start()

    def add(self, value: BytesLike) -> None:
        """Commit an operand, without reading and so without conflicts. Errors as `DB.set`;
        `ClosedError` after `stop`.
        """
        self._check()
        data = as_bytes(value, "value")
        with self._begin() as txn:
            txn.put_entry(self._key, data, META_MERGE)
        self._added.set()

    def get(self) -> bytes:
        """The fold of everything added, in the order of the commits; a plain `set` of the key is
        where it begins. `KeyNotFoundError` when there is nothing, or it was deleted or has expired.
        """
        self._check()
        with self._begin() as txn:
            folded, _ = self._fold(txn)
            txn.discard()
        if folded is None:
            raise KeyNotFoundError("nothing was added")
        return folded

    def _fold(self, txn: Txn) -> tuple[bytes | None, int]:
        """The fold at the transaction's snapshot and how many entries it is made of."""
        operands: list[bytes] = []
        with txn.iterate(start=self._key, stop=self._key + b"\0", all_versions=True) as versions:
            for item in versions:
                if item.deleted:
                    break
                operands.append(item.value)
                if not item.is_merge or item.discards_earlier:
                    break
        if not operands:
            return None, 0
        value = operands.pop()
        count = len(operands) + 1
        while operands:
            value = as_bytes(self._fn(value, operands.pop()), "the merge function's result")
        return value, count

    def _check(self) -> None:
        self._engine.check_open()
        if self._refusal is not None:
            raise self._refusal()

    # -- folding in the background ---------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            if not self._added.is_set():
                continue
            self._added.clear()
            try:
                self._compact()
                self._told = ""
            except ConflictError:
                self._added.set()  # an operand came in between: next time
            except TransactionTooBigError as error:
                self._tell(f"operands stay unfolded, their fold is too large: {error}")
            except Error as error:
                self._tell(f"folding failed, and is tried again: {error}")
                self._added.set()
            except Exception:
                log.exception("the merge function failed")
                return

    def _tell(self, what: str) -> None:
        """Log it once for as long as it lasts."""
        if what != self._told:
            self._told = what
            log.warning("%s", what)

    def _compact(self) -> None:
        """Replace the operands by their fold. `TransactionTooBigError`: they stay as they are."""
        with self._begin() as txn:
            folded, count = self._fold(txn)
            if folded is None or count < 2:
                txn.discard()
                return
            txn.hide_from_subscribers()
            txn.set(self._key, folded, discard_earlier=True)

    def stop(self) -> None:
        """Fold once more and end; `add` and `get` raise `ClosedError` from here on.

        Waits for a fold that is being made. A second call does nothing.
        """
        if self._refusal is None:
            self._end(lambda: ClosedError("this merge operator was stopped"))
            if self._engine.refusal is None:
                for _ in range(8):
                    try:
                        self._compact()
                        break
                    except TransactionTooBigError:
                        break
                    except ConflictError:
                        continue

    def end(self, refusal: Callable[[], Exception] | None) -> None:
        """The database closes: no more folds."""
        self._end(refusal or (lambda: ClosedError("the database is closed")))

    def _end(self, refusal: Callable[[], Exception]) -> None:
        self._refusal = refusal
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_SECONDS)

    def __enter__(self) -> MergeOperator:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
