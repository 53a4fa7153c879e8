"""The open databases of this process: what becomes of them in a forked child, and at its end.

Runs in: the host process, any thread.
Invariants: (1) a handle is looked after from before its first worker starts; (2) in a forked child
every inherited handle is made useless before any code of the host runs there; (3) a handle nobody
closed is closed when the interpreter ends.
"""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Protocol


class Handle(Protocol):
    """What is looked after."""

    def forget_in_child(self) -> None:
        """This process is a child of the one that opened it: let go, touch nothing."""

    def close(self, timeout: float | None) -> object:
        """Close it with this budget in seconds; None is its own."""


_open: weakref.WeakSet[Handle] = weakref.WeakSet()


def look_after(handle: Handle) -> None:
    _open.add(handle)


def let_go(handle: Handle) -> None:
    """It is closed, or was never opened; a second call does nothing."""
    _open.discard(handle)


def _in_forked_child() -> None:
    for handle in list(_open):
        handle.forget_in_child()
    _open.clear()


def _at_exit() -> None:
    for handle in list(_open):
        handle.close(None)


os.register_at_fork(after_in_child=_in_forked_child)
atexit.register(_at_exit)
