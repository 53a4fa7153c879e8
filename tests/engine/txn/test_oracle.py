"""Read marks: while a reader is there, nothing it may ask for is given up."""

from __future__ import annotations

import random
import threading

from meles.engine.txn.oracle import Oracle


def test_the_oldest_reader_holds_the_discard_timestamp() -> None:
    oracle = Oracle(10)
    assert oracle.discard_ts() == 10
    first = oracle.begin()
    assert first.ts == 10
    oracle.published = 15
    second = oracle.begin()
    assert (second.ts, oracle.discard_ts()) == (15, 10)
    third = oracle.begin(3)
    assert (third.ts, oracle.discard_ts()) == (3, 3)
    assert [mark.ts for mark in oracle.readers()] == [3, 10, 15]
    assert {mark.owner for mark in oracle.readers()} == {threading.current_thread().name}
    third.end()
    third.end()
    assert oracle.discard_ts() == 10
    first.end()
    assert oracle.discard_ts() == 15
    second.end()
    assert (oracle.discard_ts(), oracle.readers()) == (15, [])


def test_in_managed_mode_the_caller_gives_versions_up() -> None:
    oracle = Oracle(10, managed=True)
    assert oracle.discard_ts() == 0
    oracle.set_discard_ts(7)
    oracle.set_discard_ts(5)
    assert oracle.discard_ts() == 7
    mark = oracle.begin(4)
    assert oracle.discard_ts() == 4
    mark.end()
    assert oracle.discard_ts() == 7


def test_readers_come_and_go_while_it_is_asked() -> None:
    """The answer is never above a reader that began before the question and is still there."""
    oracle = Oracle(0)
    stop = threading.Event()
    wrong: list[tuple[int, int]] = []

    def read(seed: int) -> None:
        chance = random.Random(seed)
        held = []
        for _ in range(3000):
            held.append(oracle.begin())
            if len(held) > 5 or chance.random() < 0.5:
                held.pop(chance.randrange(len(held))).end()
            oldest = min((mark.ts for mark in held), default=1 << 62)
            found = oracle.discard_ts()
            if found > oldest:
                wrong.append((found, oldest))
        for mark in held:
            mark.end()

    def publish() -> None:
        while not stop.is_set():
            oracle.published += 1

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    publisher = threading.Thread(target=publish)
    for thread in (publisher, *readers):
        thread.start()
    for thread in readers:
        thread.join(60)
    stop.set()
    publisher.join(60)
    assert wrong == []
    assert oracle.readers() == []
