"""Letting committing threads have the interpreter in the middle of background work.

Runs in: supervisor, on the control thread.
One thread of an interpreter runs at a time, and who waits for it asks only after 5 ms. What follows
a job (checking, recording, picking the next) takes 1 to 5 ms, the longest a commit would wait for
anything; cut into pieces it waits for a piece. Giving up the interpreter without sleeping does not
do: the same thread has it back before another one has woken up. For the same reason a thread that
waits for it is kept out for good by one that lets go of it for a moment every so often, as any does
that reads from sockets: compiled commits look after that (kernel/handover.pxi).
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from typing import Final

from meles.engine.kernel import NATIVE

_PIECE_SECONDS: Final = 0.00005  # twice as long, with a step's end, nobody minds waiting
_NAP_SECONDS: Final = 0.0005  # longer than it takes to wake a thread
_LONG: Final = 1e6  # seconds; milliseconds fit into a C int
_nap: Final = time.sleep if NATIVE is None else NATIVE.nap
_mine = threading.local()  # `since`: when this thread last let others run; background threads only


@contextlib.contextmanager
def in_background() -> Iterator[None]:
    """In here this thread can wait, and does where it says `give_way` or `rest`."""
    _mine.since = 0.0
    if NATIVE is not None:
        NATIVE.begin_background()
    try:
        yield
    finally:
        if NATIVE is not None:
            NATIVE.end_background()
        del _mine.since


def step_aside() -> None:
    """What this thread does next takes a while, and no interpreter."""
    if NATIVE is not None:
        NATIVE.step_aside()


def rest(fd: int, seconds: float | None) -> float | None:
    """Wait at most so long (None: for ever) until `fd` can be read. How long is left to wait.

    In plain Python that is all of it, to be waited by the caller's own call.
    """
    if NATIVE is None:
        return seconds
    NATIVE.rest(fd, -1 if seconds is None else math.ceil(min(seconds, _LONG) * 1000))
    return 0.0


def give_way() -> None:
    """Let others run, after a step of work; nothing if there was hardly any.

    Inline the committing thread itself is at work, and nobody called `in_background` on it.
    """
    since = getattr(_mine, "since", None)
    if since is not None and time.perf_counter() - since >= _PIECE_SECONDS:
        _nap(_NAP_SECONDS)
        _mine.since = time.perf_counter()
