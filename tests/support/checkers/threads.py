"""Running clients: on threads that the interpreter switches often, or by lot in one thread."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

SWITCH_SECONDS = 2e-5  # the default, 5 ms, lets most transactions end before anybody interferes
JOIN_SECONDS = 600.0


@contextmanager
def switching_often(seconds: float = SWITCH_SECONDS) -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def run_threads(bodies: Iterable[Callable[[], object]]) -> None:
    """Run each on a thread of its own; raises the first error of any of them."""
    errors: list[BaseException] = []

    def guarded(body: Callable[[], object]) -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(body,)) for body in bodies]
    with switching_often():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(JOIN_SECONDS)
    if errors:
        raise errors[0]
    if any(thread.is_alive() for thread in threads):
        raise AssertionError("a client never came to an end")


def run_on_threads(clients: Iterable[Iterator[None]]) -> None:
    """Each client on its own thread, which steps aside between two operations."""

    def exhaust(client: Iterator[None]) -> Callable[[], None]:
        def body() -> None:
            for _ in client:
                time.sleep(0)

        return body

    run_threads([exhaust(client) for client in clients])


def run_by_lot(clients: Iterable[Iterator[None]], seed: int) -> None:
    """One step of a client drawn by lot after the other, until all are done."""
    rng = random.Random(seed)
    left = list(clients)
    while left:
        client = rng.choice(left)
        if next(client, left) is left:
            left.remove(client)
