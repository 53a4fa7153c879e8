"""Values of a scan stay what they are for whoever keeps them, however many come behind.

The compiled kernel makes a value in the bytes of one that nobody kept (engine/kernel/recycler.pxi).
"""

from __future__ import annotations

import ctypes
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import meles
import pytest
from twins import NATIVE, needs_native

OpenDB = Callable[..., meles.DB]
# below, at and above what is recycled; equal, somewhat shorter, much shorter, and the reverse
SIZES = [500, 959, 960, 990, 1000, 1000, 1010, 1100, 5000, 16_384, 16_400, 1 << 17, 131_073]


def text(rng: random.Random, size: int) -> bytes:
    """No two alike, and no zero in it."""
    return bytes(rng.choices(range(1, 256), k=8)) * (size // 8) + b"~" * (size % 8)


@pytest.fixture(scope="module", params=["equal", "alternating", "mixed"])
def expected(request: pytest.FixtureRequest) -> list[bytes]:
    rng = random.Random(4)
    if request.param == "mixed":
        return [text(rng, rng.choice(SIZES)) for _ in range(400)]
    sizes = (1100, 1020) if request.param == "alternating" else (1024,)
    return [text(rng, sizes[nth // 2 % len(sizes)]) for nth in range(3000)]


def stored(open_db: OpenDB, values: list[bytes]) -> meles.DB:
    db = open_db(value_threshold=500, value_log_file_size="1MiB")
    for nth, value in enumerate(values):
        db[b"%04d" % nth] = value
    db.flush()
    return db


@pytest.fixture
def values(open_db: OpenDB, expected: list[bytes]) -> Callable[[], Iterator[bytes]]:
    """Begins a scan over files of the value log: full ones, and one that is mapped as it grows."""
    db = stored(open_db, expected)
    assert len(list(Path(db.path).glob("*.vlog"))) >= 3
    return db.values


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_kept_in_a_list(values: Any, expected: list[bytes], share: float) -> None:
    rng = random.Random(share)
    kept = []
    for value, wanted in zip(values(), expected, strict=True):
        assert value == wanted
        if rng.random() < share:
            kept.append((value, wanted))
    assert all(value == wanted for value, wanted in kept)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_kept_for_a_while(values: Any, expected: list[bytes], length: int) -> None:
    last: deque[bytes] = deque(maxlen=length)
    for nth, value in enumerate(values()):
        last.append(value)
        assert list(last) == expected[max(0, nth + 1 - length) : nth + 1]


def test_kept_by_a_view(values: Any, expected: list[bytes]) -> None:
    views = [memoryview(value)[1:] for value in values()]
    assert [bytes(view) for view in views] == [value[1:] for value in expected]


def test_a_value_has_its_own_hash(values: Any, expected: list[bytes]) -> None:
    """Bytes remember their hash."""
    assert [hash(value) for value in values()] == [hash(value) for value in expected]


def test_a_value_ends_where_it_ends(values: Any, expected: list[bytes]) -> None:
    """For C, which looks for the zero behind it, and for Python, which knows the length."""
    for value, wanted in zip(values(), expected, strict=True):
        assert ctypes.string_at(value) == wanted
        assert len(value) == len(wanted)


def test_scans_side_by_side(values: Any, expected: list[bytes]) -> None:
    for first, second, wanted in zip(values(), values(), expected, strict=True):
        assert first == second == wanted
        assert first is not second


def test_threads_that_share_the_values_of_a_batch(open_db: OpenDB) -> None:
    """Long values are copied without the GIL: what another thread takes meanwhile is another's."""
    rng = random.Random(2)
    expected = [text(rng, 20_000) for _ in range(100)]
    items = stored(open_db, expected).items()
    assert next(items) == (b"0000", expected[0])
    shared: Any = items._values  # type: ignore[attr-defined]
    wrong: list[int] = []

    def look() -> None:
        for _ in range(20):
            wrong.extend(at for at in range(len(shared)) if shared[at] != expected[at])

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_damage_leaves_what_was_given(open_db: OpenDB) -> None:
    """The bytes of a value that turns out to be damaged were those of an earlier one."""
    rng = random.Random(3)
    expected = [text(rng, 1024) for _ in range(1200)]
    db = stored(open_db, expected)
    path = min(Path(db.path).glob("*.vlog"))
    at = path.read_bytes().index(expected[7]) + 1000
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\0")
    items = iter(db.values())
    given = [next(items) for _ in range(5)]
    for wanted in expected[5:7]:
        assert next(items) == wanted
    with pytest.raises(meles.CorruptionError, match="checksum"):
        next(items)
    assert given == expected[:5]


@needs_native
@pytest.mark.parametrize(
    ("first", "later", "again"),
    [
        (1024, 1024, True), (960, 960, True), (1 << 17, 1 << 17, True), (1100, 1000, True),
        (959, 959, False), ((1 << 17) + 1, (1 << 17) + 1, False),  # out of bounds
        (1000, 1001, False), (1000, 1100, False),  # no room
        (1127, 1000, False), (1125, 1000, True),  # too much of it would be left over
    ],
)  # fmt: skip
def test_whether_bytes_are_used_again(first: int, later: int, again: bool) -> None:
    assert NATIVE.recycles(first, later) == again
    assert not NATIVE.recycles(first, later, kept=True)
