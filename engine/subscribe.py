"""Subscriptions: committed changes, in commit order, to whoever asked for their prefixes.

Runs in: supervisor; `publish` under the write lock, the rest on the subscriber's thread.
Invariants: (1) a change is offered after its commit can be read, and commits in their order; (2)
the write lock is never held while waiting for a subscriber: a full blocking queue holds writers
back *before* they take it, so the queue overshoots by the commits already on their way; (3) a
thread never waits for itself: a subscriber that writes may overfill its own queue; (4) writers know
the feed only, so a subscription that is forgotten (an iteration left by `break`) is closed and
holds nobody back.
Fails with: `WriteStallError` for a subscriber that asked for it and was too slow, `ConfigError`.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from meles.engine.arguments import Seconds, seconds
from meles.engine.codec.entry import META_DELETE
from meles.engine.errors import ConfigError, WriteStallError
from meles.engine.option_checks import shown

_POLICIES: Final = ("block", "drop", "raise")
_IGNORE: Final = re.compile(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", re.ASCII)
_LARGEST_POSITION: Final = 65_000


@dataclass(frozen=True, slots=True)
class Change:
    """A committed change. `value` is None for deletes; `expires_at` in unix seconds, 0 = never;
    `meta` is the user's byte, `version` the timestamp of the commit.

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
    if not isinstance(text, str):
        raise ConfigError(f"ignore={shown(text)}: a text of positions such as '0-3,7'")
    positions: set[int] = set()
    for part in text.split(",") if text.strip() else ():
        match = _IGNORE.fullmatch(part)
        if match is None:
            raise ConfigError(
                f"ignore={shown(text)}: positions such as '3' or ranges such as '0-3'"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last > _LARGEST_POSITION:
            raise ConfigError(f"ignore={shown(text)}: {part.strip()!r} is no range of positions")
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


class Feed:
    """What waits for one subscriber: filled by writers, emptied by its `Subscription`."""

    def __init__(self, matches: Callable[[bytes], bool], *, queue: int, on_overflow: str) -> None:
        if on_overflow not in _POLICIES:
            raise ConfigError(f"on_overflow={shown(on_overflow)}: one of {', '.join(_POLICIES)}")
        if type(queue) is not int or queue < 1:
            raise ConfigError(f"queue={shown(queue)}: a whole number of at least 1")
        # fixed after construction
        self._matches = matches
        self.limit = queue
        self.blocks = on_overflow == "block"
        self._raises = on_overflow == "raise"
        # under _changed, whose lock a finaliser may take at any point: hence a reentrant one
        self._changed = threading.Condition(threading.RLock())
        self._queue: deque[Change] = deque()
        self._missed = 0
        self._overflowed = False
        self._closed = False
        self.refusal: Callable[[], Exception] | None = None
        self.reader = threading.get_ident()  # thread that reads; until one does, who asked for it

    # -- the writer's side -----------------------------------------------------------------------

    def wait_for_room(self) -> None:
        """Hold a writer back while the queue is full. Called without the write lock."""
        if len(self._queue) < self.limit or self.reader == threading.get_ident():
            return
        with self._changed:
            while len(self._queue) >= self.limit and not self._closed:
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
                if len(self._queue) >= self.limit and not self.blocks:
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
        if self._raises:
            self._overflowed = True
        else:
            self._missed += 1

    # -- the reader's side -----------------------------------------------------------------------

    def take(self, timeout: float | None) -> Change | None:
        """The next change; None when there will be none, or none came in time."""
        self.reader = threading.get_ident()
        with self._changed:
            if not self._queue and not self._overflowed:
                self._changed.wait_for(
                    lambda: bool(self._queue) or self._closed or self._overflowed, timeout
                )
            if self._queue:
                change = self._queue.popleft()
                self._changed.notify_all()
                return change
            if self.refusal is not None:
                raise self.refusal()
            if self._overflowed and not self._closed:
                raise WriteStallError(
                    f"this subscriber fell more than {self.limit} changes behind",
                    hint="read faster, raise queue=, or use on_overflow='drop'",
                )
            return None

    def close(self, *, forget: bool) -> None:
        """Nothing more comes in; `forget` drops what waits too."""
        with self._changed:
            self._closed = True
            if forget:
                self._queue.clear()
            self._changed.notify_all()

    def forget_in_child(self, refusal: Callable[[], Exception] | None) -> None:
        """After fork: nothing will come here any more. The lock may be held by nobody that is."""
        self._changed = threading.Condition(threading.RLock())
        self._closed = True
        self._queue.clear()
        self.refusal = refusal


class Subscription:
    """An iterator of `Change`, made by `db.subscribe()`; `next` waits for the next change.

    Closing it ends the iterator at once, closing the database after what was queued. A context
    manager; one that is forgotten closes. `WriteStallError` when it was to be raised on overflow:
    what was queued until then comes first.
    """

    def __init__(self, feed: Feed, on_close: Callable[[Feed], None]) -> None:
        self._feed = feed
        self._on_close = on_close

    def __iter__(self) -> Subscription:
        return self

    def __next__(self) -> Change:
        change = self._feed.take(None)
        if change is None:
            raise StopIteration
        return change

    def next_change(self, timeout: Seconds | None = None) -> Change | None:
        """The next change; None when the subscription has ended or none came in `timeout` seconds
        (None: as long as it takes; 0 does not wait).
        """
        return self._feed.take(None if timeout is None else seconds(timeout, "timeout"))

    def close(self) -> None:
        """End it; changes still queued are forgotten. A second call does nothing."""
        self._feed.close(forget=True)
        self._on_close(self._feed)

    def end(self, _refusal: Callable[[], Exception] | None) -> None:
        """The database closes: what is queued may still be read, then it ends."""
        self._feed.close(forget=False)
        self._on_close(self._feed)

    def forget_in_child(self, refusal: Callable[[], Exception] | None = None) -> None:
        """After fork: using it raises `refusal()`."""
        self._feed.forget_in_child(refusal)
        self._on_close = lambda _feed: None

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Publisher:
    """The subscriptions of a database. `publish` and `hold_back` are the writer's hooks."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finaliser may come in between
        self._all: tuple[Feed, ...] = ()
        self.on_change: Callable[[bool], None] = lambda _any: None

    def subscribe(
        self, matches: Callable[[bytes], bool], *, queue: int, on_overflow: str
    ) -> Subscription:
        """A subscription that hears of every commit from now on."""
        feed = Feed(matches, queue=queue, on_overflow=on_overflow)
        with self._lock:
            self._all = (*self._all, feed)
            self.on_change(True)
        return Subscription(feed, self._remove)

    def _remove(self, feed: Feed) -> None:
        with self._lock:
            self._all = tuple(other for other in self._all if other is not feed)
            self.on_change(bool(self._all))

    def hold_back(self) -> None:
        """Before a commit takes the write lock: wait for subscribers that asked writers to."""
        for feed in self._all:
            if feed.blocks:
                feed.wait_for_room()

    def publish(
        self,
        ts: int,
        keys: Sequence[bytes],
        values: Sequence[bytes],
        metas: Sequence[int],
        expiries: Sequence[int],
    ) -> None:
        """After a commit was published, still under the write lock."""
        for feed in self._all:
            feed.offer(ts, keys, values, metas, expiries)
