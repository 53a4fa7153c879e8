"""The parts of one open database that transactions and the public handle share.

Runs in: supervisor.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from meles.engine.errors import BannedKeyError, ReadOnlyError
from meles.engine.options import Options
from meles.engine.read_view import NAMESPACE_BYTES
from meles.engine.store import Store
from meles.engine.subscribe import Publisher
from meles.engine.txn.lifetime import Terms
from meles.engine.txn.oracle import Oracle
from meles.engine.writing.writer import Writer


@dataclass(slots=True)
class Engine:
    """`writer` is None on a read-only handle. `refusal`, once set, makes every call raise.

    `open_objects` are cursors, batches, operators and subscriptions, to be ended when the database
    closes. Transactions ask for `refusal` themselves, or for `ended` of the clock, which is set
    behind it and decides what is committed still.
    """

    options: Options
    store: Store
    oracle: Oracle
    writer: Writer | None
    refusal: Callable[[], Exception] | None = None
    open_objects: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)
    publisher: Publisher = field(default_factory=Publisher)
    terms: Terms = field(init=False)

    def __post_init__(self) -> None:
        options = self.options
        self.terms = Terms(
            self.oracle.marks, options.txn_limit, options.value_threshold,
            options.value_log_file_size, options.detect_conflicts, options.managed,
            options.namespace_offset >= 0,
        )  # fmt: skip

    def refuse(self, refusal: Callable[[], Exception]) -> None:
        """Have every call raise from now on."""
        self.refusal = refusal
        self.oracle.clock.ended = True

    def watch(self, item: Any) -> None:
        """Have it ended when the database closes, also if it does so at this moment."""
        self.open_objects.add(item)
        if self.refusal is not None:
            item.end(self.refusal)

    def watched(self) -> list[Any]:
        """What is to be ended, whoever adds to it meanwhile."""
        return listed(self.open_objects)

    def check_open(self) -> None:
        if self.refusal is not None:
            raise self.refusal()

    def check_writable(self) -> Writer:
        if self.refusal is not None:  # as check_open, without its frame
            raise self.refusal()
        if self.writer is None:
            raise ReadOnlyError("this handle was opened with mode='read_only'")
        return self.writer

    def check_namespace(self, key: bytes) -> None:
        """`BannedKeyError` when the key's namespace is banned. Keys too short have none."""
        offset = self.options.namespace_offset
        if offset >= 0 and len(key) > offset + NAMESPACE_BYTES:
            number = int.from_bytes(key[offset : offset + NAMESPACE_BYTES], "big")
            if number in self.store.version.banned:
                raise BannedKeyError(f"namespace {number} is banned")

    @property
    def has_bans(self) -> bool:
        return bool(self.store.version.banned)


def listed(items: weakref.WeakSet[Any]) -> list[Any]:
    """What a set holds that other threads add to."""
    while True:
        try:
            return list(items)
        except RuntimeError:  # it changed while it was listed
            continue
