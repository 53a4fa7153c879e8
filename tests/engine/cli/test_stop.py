"""Stop requests: counted, never lost, and what ends a wait."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from meles.engine.cli.stop import StopSource


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield read_end, write_end
    os.close(read_end)
    os.close(write_end)


def test_each_byte_is_a_request(pipe: tuple[int, int]) -> None:
    stop = StopSource(pipe[0])
    assert stop.count == 0
    os.write(pipe[1], b"\x0f")
    os.write(pipe[1], b"\x02\x0f")
    assert stop.count == 3
    assert stop.count == 3


def test_a_request_ends_the_wait_and_is_still_to_be_counted(pipe: tuple[int, int]) -> None:
    stop = StopSource(pipe[0])
    os.write(pipe[1], b"\x0f")
    assert stop.wait([], None) == []
    assert stop.count == 1
    assert stop.wait([], 0) == []


def test_inputs_that_can_be_read_or_have_ended_are_named(pipe: tuple[int, int]) -> None:
    stop = StopSource(pipe[0])
    full, empty, ended = os.pipe(), os.pipe(), os.pipe()
    os.write(full[1], b"x")
    os.close(ended[1])
    assert sorted(stop.wait([full[0], empty[0], ended[0]], None)) == sorted([full[0], ended[0]])
    for fd in (*full, *empty, ended[0]):
        os.close(fd)
