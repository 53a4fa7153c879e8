"""Values of a scan stay what they are for whoever keeps them, however many come behind.

The compiled kernel makes a value in the bytes of one that nobody kept (engine/kernel/recycler.pxi).
"""

from __future__ import annotations

import ctypes
import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import meles
import pytest

OpenDB = Callable[..., meles.DB]
COUNT = 300
# below, at and above what is made over; equal, somewhat shorter, much shorter, and the reverse
SIZES = [511, 512, 600, 900, 990, 1000, 1000, 1010, 1100, 5000, 16_384, 16_400, 1 << 17, 131_073]


def text(rng: random.Random, size: int) -> bytes:
    return bytes(rng.choices(range(1, 256), k=8)) * (size // 8) + b"~" * (size % 8)


@pytest.fixture(scope="module", params=["equal", "mixed"])
def expected(request: pytest.FixtureRequest) -> list[bytes]:
    rng = random.Random(4)
    sizes = [1024] * len(SIZES) if request.param == "equal" else SIZES
    return [text(rng, rng.choice(sizes)) for _ in range(COUNT)]


@pytest.fixture
def values(open_db: OpenDB, expected: list[bytes]) -> Callable[[], Iterator[bytes]]:
    """Begins a scan; all are in sealed files of the value log, or in the one being written."""
    db = open_db(value_threshold=500)
    for nth, value in enumerate(expected):
        db[b"%04d" % nth] = value
    db.flush()
    return db.values


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_kept_in_a_list(values: Any, expected: list[bytes], share: float) -> None:
    rng = random.Random(share)
    kept = [(nth, value) for nth, value in enumerate(values()) if rng.random() < share]
    assert all(value == expected[nth] for nth, value in kept)


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
