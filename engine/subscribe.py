"""Subscriptions: committed changes, in commit order, to whoever asked for their prefixes.

Runs in: supervisor; `publish` under the write lock, the rest on the subscriber's thread.
Invariants: (1) a change is offered after its commit can be read, and commits in their order; (2)
the write lock is never held while waiting for a subscriber: a full blocking queue holds writers
back *before* they take it, so the queue overshoots by the commits already on their way; (3) a
thread never waits for itself: a subscriber that writes may overfill its own queue.
Fails with: `WriteStallError` for a subscriber that asked for it and was too slow, `ConfigError`.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from meles.engine.codec.entry import META_DELETE
from meles.engine.errors import ConfigError, WriteStallError

_POLICIES: Final = ("block", "drop", "raise")
_IGNORE: Final = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?")
_LARGEST_POSITION: Final = 65_000


@dataclass(frozen=True, slots=True)
class Change:
    """A committed change. `value` is None for deletes; `expires_at` in unix seconds, 0 = never.

    `missed` counts the changes dropped right before this one (`on_overflow="drop"`).
    """

    key: bytes
    value: bytes | None
    deleted: bool
    meta: int
    expires_at: float
    version: int
    missed: int = 0


def parse_ignore(text: str) -> frozenset[int]:
    """Positions of a prefix that match any byte: `"0-3,7"`, counted from 0."""
    positions: set[int] = set()
    for part in text.split(",") if text.strip() else ():
        match = _IGNORE.fullmatch(part)
        if match is None:
            raise ConfigError(f"ignore={text!r}: positions such as '3' or ranges such as '0-3'")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last > _LARGEST_POSITION:
            raise ConfigError(f"ignore={text!r}: {part.strip()!r} is no range of positions")
        positions.update(range(first, last + 1))
    return frozenset(positions)


def make_matcher(prefixes: Sequence[bytes], ignore: frozenset[int]) -> Callable[[bytes], bool]:
    """Whether a key begins with one of the prefixes, some positions not compared."""
    if not prefixes:
        return lambda _key: True
    if not ignore:
        wanted = tuple(prefixes)
        return lambda key: key.startswith(wanted)
    patterns = [
        re.compile(
            b"".join(
                b"." if at in ignore else re.escape(prefix[at : at + 1])
                for at in range(len(prefix))
            ),
            re.DOTALL,
        )
        for prefix in prefixes
    ]
    return lambda key: any(pattern.match(key) for pattern in patterns)


class Subscription:
    """An iterator of `Change`; live when it is made. Closing it, or the database, ends it."""

    def __init__(
        self,
        matches: Callable[[bytes], bool],
        *,
        queue: int,
        on_overflow: str,
        on_close: Callable[[Subscription], None],
    ) -> None:
        if on_overflow not in _POLICIES:
            raise ConfigError(f"on_overflow={on_overflow!r}: one of {', '.join(_POLICIES)}")
        if type(queue) is not int or queue < 1:
            raise ConfigError(f"queue={queue!r}: a whole number of at least 1")
        self._matches = matches
        self._limit = queue
        self._policy = on_overflow
        self._on_close = on_close
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._queue: deque[Change] = deque()
        self._missed = 0
        self._overflowed = False
        self._closed = False
        self._reader: int | None = None  # thread that reads here

    # -- the writer's side -----------------------------------------------------------------------

    @property
    def blocks(self) -> bool:
        return self._policy == "block"

    def wait_for_room(self) -> None:
        """Hold a writer back while the queue is full. Called without the write lock."""
        if len(self._queue) < self._limit or self._reader == threading.get_ident():
            return
        with self._changed:
            while len(self._queue) >= self._limit and not self._closed:
                self._changed.wait()

    def offer(
        self,
        ts: int,
        keys: Sequence[bytes],
        values: Sequence[bytes],
        metas: Sequence[int],
        expiries: Sequence[int],
    ) -> None:
        """The changes of one commit. Called under the write lock; never waits for the reader."""
        wanted = [at for at, key in enumerate(keys) if self._matches(key)]
        if not wanted:
            return
        with self._changed:
            if self._closed or self._overflowed:
                return
            for at in wanted:
                if len(self._queue) >= self._limit and self._policy != "block":
                    self._overflow_locked()
                    continue
                deleted = bool(metas[at] & META_DELETE)
                expires = expiries[at] / 1000 if expiries[at] else 0
                value = None if deleted else values[at]
                change = Change(keys[at], value, deleted, metas[at] >> 8, expires, ts, self._missed)
                self._missed = 0
                self._queue.append(change)
            self._changed.notify_all()

    def _overflow_locked(self) -> None:
        if self._policy == "raise":
            self._overflowed = True
        else:
            self._missed += 1

    # -- the reader's side -----------------------------------------------------------------------

    def __iter__(self) -> Subscription:
        return self

    def __next__(self) -> Change:
        change = self.next_change(None)
        if change is None:
            raise StopIteration
        return change

    def next_change(self, timeout: float | None = None) -> Change | None:
        """The next change; None when the subscription ended or `timeout` seconds passed."""
        self._reader = threading.get_ident()
        with self._changed:
            if not self._queue and not self._overflowed:
                self._changed.wait_for(
                    lambda: bool(self._queue) or self._closed or self._overflowed, timeout
                )
            if self._queue:
                change = self._queue.popleft()
                self._changed.notify_all()
                return change
            if self._overflowed and not self._closed:
                raise WriteStallError(
                    f"this subscriber fell more than {self._limit} changes behind",
                    hint="read faster, raise queue=, or use on_overflow='drop'",
                )
            return None

    def close(self) -> None:
        """End it; changes still queued are forgotten. A second call does nothing."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()
        self._on_close(self)

    def end(self, _refusal: Callable[[], Exception] | None) -> None:
        """The database closes: what is queued may still be read, then it ends."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._on_close(self)

    def forget_in_child(self) -> None:
        """After fork: nothing will come here any more. The locks may be held by nobody that is."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._closed = True
        self._queue.clear()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Publisher:
    """The subscriptions of a database. `publish` and `hold_back` are the writer's hooks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: tuple[Subscription, ...] = ()
        self.on_change: Callable[[bool], None] = lambda _any: None

    def add(self, subscription: Subscription) -> None:
        with self._lock:
            self._all = (*self._all, subscription)
            self.on_change(True)

    def remove(self, subscription: Subscription) -> None:
        with self._lock:
            self._all = tuple(other for other in self._all if other is not subscription)
            self.on_change(bool(self._all))

    def hold_back(self) -> None:
        """Before a commit takes the write lock: wait for subscribers that asked writers to."""
        for subscription in self._all:
            if subscription.blocks:
                subscription.wait_for_room()

    def publish(
        self,
        ts: int,
        keys: Sequence[bytes],
        values: Sequence[bytes],
        metas: Sequence[int],
        expiries: Sequence[int],
    ) -> None:
        """After a commit was published, still under the write lock."""
        for subscription in self._all:
            subscription.offer(ts, keys, values, metas, expiries)
