"""`db.sequence`: numbers that never repeat."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import meles
import pytest
from checkers.threads import run_threads

OpenDB = Callable[..., meles.DB]


def test_numbers_grow_from_0(db: meles.DB) -> None:
    with db.sequence(b"s") as sequence:
        assert [next(sequence) for _ in range(5)] == [0, 1, 2, 3, 4]
        assert list(islice(sequence, 3)) == [5, 6, 7]


@pytest.mark.parametrize("bandwidth", [1, 3, 100])
def test_leases_follow_each_other(db: meles.DB, bandwidth: int) -> None:
    sequence = db.sequence(b"s", bandwidth)
    assert list(islice(sequence, 10)) == list(range(10))
    assert int.from_bytes(db[b"s"], "big") == -(-10 // bandwidth) * bandwidth


def test_release_gives_back_what_was_not_used(open_db: OpenDB) -> None:
    db = open_db()
    sequence = db.sequence(b"s", bandwidth=100)
    assert list(islice(sequence, 5)) == list(range(5))
    sequence.release()
    sequence.release()
    assert int.from_bytes(db[b"s"], "big") == 5
    assert next(sequence) == 5  # usable again
    sequence.release()
    db.close()
    with open_db() as again, again.sequence(b"s") as sequence:
        assert next(sequence) == 6


def test_leaving_the_block_releases(db: meles.DB) -> None:
    with db.sequence(b"s") as sequence:
        next(sequence)
    assert next(db.sequence(b"s")) == 1


def test_two_sequences_on_one_key_have_disjoint_leases(db: meles.DB) -> None:
    one, two = db.sequence(b"s", 10), db.sequence(b"s", 10)
    first, second = list(islice(one, 15)), list(islice(two, 15))
    assert len({*first, *second}) == 30
    assert first == sorted(first)
    one.release()  # not the last lease: what is left of it is lost
    assert next(two) not in first


def test_a_crash_wastes_the_lease_and_repeats_nothing(open_db: OpenDB, tmp_path: Path) -> None:
    crash = """
import os, sys, meles
db = meles.open(sys.argv[1], workers="inline", sync="none")
seq = db.sequence(b"s", 10)
[next(seq) for _ in range(12)]
os._exit(1)
"""
    subprocess.run([sys.executable, "-c", crash, str(tmp_path / "db")], check=False)
    assert next(open_db().sequence(b"s", 10)) == 20


def test_any_thread_may_take_a_number(db: meles.DB) -> None:
    sequence = db.sequence(b"s", 7)
    found: list[int] = []

    def work() -> None:
        found.extend(islice(sequence, 100))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(400))


@pytest.mark.parametrize("bandwidth", [0, -1, 1.5, "100", None, True, 2**64, 10**400])
def test_other_bandwidths_are_config_errors(db: meles.DB, bandwidth: Any) -> None:
    with pytest.raises(meles.ConfigError, match="bandwidth"):
        db.sequence(b"s", bandwidth)
    assert b"s" not in db


def test_the_last_number(db: meles.DB) -> None:
    sequence = db.sequence(b"s", 2**64 - 1)
    assert next(sequence) == 0
    with pytest.raises(meles.Error, match="no numbers left"):
        db.sequence(b"s", 10)


def test_a_key_that_holds_something_else(db: meles.DB) -> None:
    db[b"s"] = b"not a number"
    with pytest.raises(meles.CorruptionError, match="sequence"):
        db.sequence(b"s")
    assert db[b"s"] == b"not a number"


def test_after_closing_the_database(db: meles.DB) -> None:
    sequence = db.sequence(b"s")
    assert next(sequence) == 0
    db.close()
    with pytest.raises(meles.ClosedError):
        next(sequence)
    with pytest.raises(meles.ClosedError):
        sequence.release()
    with sequence:  # leaving it has nothing to give back to
        pass
    with pytest.raises(meles.ClosedError):
        db.sequence(b"s")


def test_numbers_never_repeat_whatever_detect_conflicts_says(open_db: OpenDB) -> None:
    """The option is about the host's transactions; leases are taken in ones of the engine's."""
    db = open_db(detect_conflicts=False)
    sequences = [db.sequence(b"s", 1) for _ in range(4)]
    taken: list[list[int]] = [[] for _ in sequences]

    def client(number: int) -> Callable[[], None]:
        return lambda: taken[number].extend(islice(sequences[number], 200))

    run_threads([client(number) for number in range(len(sequences))])
    numbers = [number for each in taken for number in each]
    assert len(set(numbers)) == len(numbers) == 800
