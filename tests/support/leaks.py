"""What a test may leave behind: nothing. Processes, descriptors and threads, before and after."""

from __future__ import annotations

import gc
import os
import threading
from dataclasses import dataclass

import psutil
from waiting import wait_until

_GRACE_SECONDS = 30.0  # for what was told to go and has not been scheduled yet


@dataclass(frozen=True)
class Held:
    """What this process holds: children (pid, start), descriptors by target, threads of Meles."""

    children: frozenset[psutil.Process]
    descriptors: dict[int, str]
    threads: frozenset[threading.Thread]

    @staticmethod
    def now() -> Held:
        return Held(
            frozenset(psutil.Process().children(recursive=True)),
            _descriptors(),
            frozenset(t for t in threading.enumerate() if t.name.startswith("meles")),
        )

    def grown(self) -> list[str]:
        """What is held now and was not then, in words."""
        now = Held.now()
        found = [f"process {child}" for child in now.children - self.children]
        found += [f"thread {thread.name}" for thread in now.threads - self.threads]
        if len(now.descriptors) > len(self.descriptors):
            new = sorted(set(now.descriptors.items()) - set(self.descriptors.items()))
            found += [f"descriptor {fd} on {target}" for fd, target in new]
        return found


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one that listed them
            continue
    return found


def assert_nothing_left(before: Held) -> None:
    """`AssertionError` naming what a test left behind, after a grace period for what is leaving."""
    if not before.grown():
        return
    gc.collect()  # only now: it takes seconds after thousands of tests
    try:
        wait_until(lambda: not before.grown(), _GRACE_SECONDS)
    except AssertionError:
        raise AssertionError(f"left behind: {'; '.join(before.grown())}") from None
