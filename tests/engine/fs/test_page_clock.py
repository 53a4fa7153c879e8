"""The clock over marks: what was used stays for a round, what goes takes all unmarked along."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from meles.engine.fs.page_clock import ABSENT, CHUNK_BYTES, IDLE, USED, aged, resident


def test_a_used_chunk_stays_for_one_round_and_an_idle_one_goes() -> None:
    after, going = aged(bytes((USED, IDLE, ABSENT, USED, ABSENT, IDLE)))
    assert after == bytes((IDLE, ABSENT, ABSENT, IDLE, ABSENT, ABSENT))
    assert going == [(CHUNK_BYTES, 3 * CHUNK_BYTES), (4 * CHUNK_BYTES, 6 * CHUNK_BYTES)]
    after, going = aged(after)
    assert (resident(after), going) == (0, [(0, 6 * CHUNK_BYTES)])


def test_where_nothing_is_idle_nothing_is_forgotten() -> None:
    assert aged(bytes((USED, ABSENT, USED))) == (bytes((IDLE, ABSENT, IDLE)), [])
    assert aged(b"") == (b"", [])


@given(st.lists(st.sampled_from((ABSENT, IDLE, USED)), max_size=40).map(bytes))
def test_no_chunk_that_goes_was_used_and_none_that_stays_is_forgotten(marks: bytes) -> None:
    after, going = aged(marks)
    gone = {n for start, stop in going for n in range(start // CHUNK_BYTES, stop // CHUNK_BYTES)}
    assert [after[nth] for nth in range(len(marks))] == [
        IDLE if mark == USED else ABSENT for mark in marks
    ]
    assert gone == ({n for n, mark in enumerate(marks) if mark != USED} if IDLE in marks else set())
    assert resident(marks) == CHUNK_BYTES * sum(mark != ABSENT for mark in marks)
