"""Letting committing threads have the interpreter in the middle of background work.

Runs in: supervisor, on the control thread.
One thread of an interpreter runs at a time, and who waits for it asks only after 5 ms. What follows
a job (checking, recording, picking the next) takes 1 to 3 ms, the longest a commit would wait for
anything; cut into pieces it waits for a piece. Giving up the interpreter without sleeping does not
do: the same thread has it back before another one has woken up.
"""

from __future__ import annotations

import time
from typing import Final

_NAP_SECONDS: Final = 0.0001  # longer than it takes to wake a thread


def give_way(workers: str) -> None:
    """Let others run; for the ends of steps of some tenths of a millisecond.

    `workers` is the option: inline, the committing thread itself is at work.
    """
    if workers != "inline":
        time.sleep(_NAP_SECONDS)
