"""Letting committing threads have the interpreter in the middle of background work.

Runs in: supervisor, on the control thread.
One thread of an interpreter runs at a time, and who waits for it asks only after 5 ms. What follows
a job (checking, recording, picking the next) takes 1 to 5 ms, the longest a commit would wait for
anything; cut into pieces it waits for a piece. Giving up the interpreter without sleeping does not
do: the same thread has it back before another one has woken up.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from meles.engine.kernel import NATIVE

_PIECE_SECONDS: Final = 0.00005  # twice as long, with a step's end, nobody minds waiting
_NAP_SECONDS: Final = 0.0005  # longer than it takes to wake a thread
_nap: Final = time.sleep if NATIVE is None else NATIVE.nap
_mine = threading.local()  # `since`: when this thread last let others run; background threads only


def in_background() -> None:
    """This thread can wait: from now on it does where it says `give_way`."""
    _mine.since = 0.0


def step_aside() -> None:
    """What this thread does next takes a while, and no interpreter."""
    if NATIVE is not None and getattr(_mine, "since", None) is not None:
        NATIVE.step_aside()


def give_way() -> None:
    """Let others run, after a step of work; nothing if there was hardly any.

    Inline the committing thread itself is at work, and nobody called `in_background` on it.
    """
    since = getattr(_mine, "since", None)
    if since is not None and time.perf_counter() - since >= _PIECE_SECONDS:
        _nap(_NAP_SECONDS)
        _mine.since = time.perf_counter()
