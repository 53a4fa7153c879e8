"""When a worker starts again: policy only, with a clock and dice of our own."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.workers.parent.restart import (
    BURST,
    BURST_SECONDS,
    FIRST_GAP,
    HEALTHY_AFTER,
    JITTER,
    LONGEST_GAP,
    SHORTAGE_GAP,
    SHORTAGES,
    Restarts,
    Silence,
)

MIDDLE = 0.5  # of the dice: no jitter


def dies_at_once(restarts, now, times, dice=MIDDLE):
    """A worker that gets ready and dies without a pause, `times` times; the gaps."""
    gaps = []
    for _ in range(times):
        restarts.ready(now)
        gaps.append(restarts.died(now, dice))
        now += gaps[-1]
    return gaps


def test_the_first_restart_is_immediate_and_then_gaps_double():
    assert dies_at_once(Restarts(), 100.0, 5) == [0.0, 0.2, 0.4, 0.8, 1.6]


def test_only_who_follows_one_that_was_well_is_the_first_in_a_row():
    never_booted, restarts = Restarts(), Restarts()
    never_booted.died(0.0, MIDDLE)
    assert not never_booted.first_in_a_row
    assert not restarts.first_in_a_row
    for expected in (True, False, False):
        dies_at_once(restarts, 0.0, 1)
        assert restarts.first_in_a_row == expected
    restarts.ready(0.0)
    restarts.died(HEALTHY_AFTER, MIDDLE)
    assert restarts.first_in_a_row


def test_gaps_end_at_thirty_seconds():
    assert dies_at_once(Restarts(), 0.0, 40)[-20:] == [LONGEST_GAP] * 20


def test_never_more_than_five_restarts_in_ten_seconds():
    restarts, now, starts = Restarts(), 0.0, []
    for _ in range(30):
        restarts.ready(now)
        now += restarts.died(now, 0.0)
        starts.append(now)
    for first, sixth in zip(starts, starts[BURST:], strict=False):
        assert sixth - first >= BURST_SECONDS - 1e-9


@given(st.floats(0, 1, exclude_max=True))
def test_jitter_is_a_fifth_either_way(dice):
    gap = dies_at_once(Restarts(), 0.0, 2, dice)[1]
    assert FIRST_GAP * (1 - JITTER) <= gap <= FIRST_GAP * (1 + JITTER)


def test_a_minute_of_health_makes_it_new():
    restarts = Restarts()
    dies_at_once(restarts, 0.0, 4)
    restarts.ready(50.0)
    assert restarts.died(50.0 + HEALTHY_AFTER - 1, MIDDLE) > 0
    restarts.ready(200.0)
    assert restarts.died(200.0 + HEALTHY_AFTER, MIDDLE) == 0.0
    assert not restarts.worrying


def test_three_failures_to_boot_are_given_up_on_and_tried_slowly():
    restarts = Restarts()
    assert restarts.died(0.0, MIDDLE) == 0.0
    assert restarts.died(1.0, MIDDLE) == FIRST_GAP
    assert not restarts.gave_up
    assert restarts.died(2.0, MIDDLE) == LONGEST_GAP
    assert restarts.gave_up
    restarts.ready(40.0)
    assert not restarts.gave_up


def test_deaths_after_boot_are_no_boot_failures():
    restarts = Restarts()
    dies_at_once(restarts, 0.0, 10)
    assert not restarts.gave_up
    assert restarts.worrying


@pytest.mark.parametrize("code", sorted(SHORTAGES))
def test_what_cannot_be_spawned_for_want_of_resources_is_tried_every_second(code):
    restarts = Restarts()
    for number in range(1, 50):
        assert restarts.not_spawned(OSError(code, "scarce"), number, MIDDLE) == SHORTAGE_GAP
        assert restarts.shortages == number
    assert not restarts.gave_up
    assert not restarts.worrying
    restarts.spawned()
    assert restarts.shortages == 0
    assert restarts.died(60.0, MIDDLE) == 0.0


def test_what_cannot_be_spawned_for_another_reason_is_a_failure_to_boot():
    restarts = Restarts()
    for _ in range(3):
        restarts.not_spawned(FileNotFoundError(errno.ENOENT, "no Python"), 0.0, MIDDLE)
    assert restarts.gave_up


def test_silence_counts_from_the_last_word():
    silence = Silence(2.0)
    assert not silence.silent(11.9, 10.0)
    assert silence.silent(12.0, 10.0)


def test_a_beating_worker_may_be_without_progress_for_longer():
    silence = Silence(2.0)
    assert not silence.stuck(17.9, 10.0)
    assert silence.stuck(18.0, 10.0)
    assert silence.next_look(10.0, None) == 12.0
    assert silence.next_look(17.0, 10.0) == 18.0


@pytest.mark.parametrize(("late", "slept"), [(0.0, 0), (0.4, 0), (0.6, 0.6), (60, 60)])
def test_sleep_of_our_own_is_no_silence(late, slept):
    silence = Silence(2.0)
    assert silence.slept(49.6) == 0
    assert silence.plan(49.6, 50.0) == 50.0
    assert silence.slept(50.0 + late) == pytest.approx(slept)


def test_sleep_is_forgiven_once():
    silence = Silence(2.0)
    silence.plan(50.0, 50.0)
    assert silence.slept(60.0) > 0
    assert silence.slept(60.0) == 0


def test_looks_are_not_far_apart():
    """So that little of a sleep counts: what of it lay before the look was due."""
    silence = Silence(2.0)
    assert silence.plan(50.0, 90.0) == 50.5
    assert silence.plan(50.0, 50.2) == 50.2
    assert silence.plan(50.0, 49.0) == 50.0


@pytest.mark.parametrize("often", [1, 2, 3])
def test_who_is_late_again_and_again_still_notices_who_hangs(often):
    """A loaded host: every look comes late, or each second or third. What is left adds up."""
    silence, now, heard_at = Silence(2.0), 50.0, 50.0
    for number in range(100):
        late = 1.2 if number % often == 0 else 0
        now = silence.plan(now, silence.next_look(heard_at, None)) + late
        heard_at = min(now, heard_at + silence.slept(now))
        if silence.silent(now, heard_at):
            break
    assert 52.0 <= now < 57.0


@given(st.lists(st.integers(0, 30), max_size=60))
def test_however_late_a_worker_that_beats_is_not_silent(tenths):
    """It beats every third of the time-out; the loop reads what came after it has looked."""
    silence, now, heard_at = Silence(2.0), 50.0, 50.0
    beat = 2.0 / 3
    for late in tenths:
        now = silence.plan(now, silence.next_look(heard_at, None)) + late / 10
        heard_at += silence.slept(now)
        assert not silence.silent(now, heard_at)
        heard_at = max(heard_at, now - now % beat)


def test_a_row_of_sleeps_condemns_nobody_who_beats():
    """Stopped and continued with everybody else, again and again."""
    silence, now, heard_at = Silence(2.0), 50.0, 50.0
    for number in range(50):
        look_at = silence.plan(now, silence.next_look(heard_at, None))
        stopped = now + (look_at - now) * (number % 4) / 4
        heard_at = max(heard_at, stopped)  # it beat until then
        now = stopped + 10.0
        heard_at += silence.slept(now)
        assert not silence.silent(now, heard_at)
