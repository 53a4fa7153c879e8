"""The driver of stages."""

import pytest
from meles.workers.parent.stages import Deadline, StageRow, run_stages


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def outcomes(stages):
    return [(stage.name, stage.outcome) for stage in stages]


def test_stages_run_in_order_and_report_what_they_did(clock):
    done = []

    def action(name, detail, seconds):
        def run(deadline):
            done.append(name)
            clock.now += seconds
            return detail

        return run

    rows = [
        StageRow("a", action("a", "", 1)),
        StageRow("b", action("b", "three files", 2)),
        StageRow("c", action("c", None, 0)),
    ]
    report = run_stages(rows, Deadline(10, clock), clock=clock)
    assert done == ["a", "b", "c"]
    assert outcomes(report) == [("a", "done"), ("b", "done"), ("c", "skipped")]
    assert [stage.seconds for stage in report] == [1, 2, 0]
    assert report[1].detail == "three files"


def test_a_stage_that_fails_or_runs_late_does_not_stop_the_next(clock):
    def late(deadline):
        clock.now += 100
        raise TimeoutError("2 logs stay")

    def broken(deadline):
        raise ZeroDivisionError("a defect")

    last = []
    trouble = []
    rows = [StageRow("late", late), StageRow("broken", broken), StageRow("last", last.append)]
    rows[2] = StageRow("last", lambda deadline: last.append(deadline.left()) or "")
    report = run_stages(
        rows, Deadline(10, clock), lambda stage, error: trouble.append((stage.name, error)), clock
    )
    assert outcomes(report) == [("late", "timeout"), ("broken", "failed"), ("last", "done")]
    assert "2 logs stay" in report[0].detail
    assert "ZeroDivisionError" in report[1].detail
    assert last == [0.0]
    assert [name for name, _ in trouble] == ["late", "broken"]


def test_each_stage_gets_its_share_of_what_is_left(clock):
    seen = []

    def action(deadline):
        seen.append(deadline.left())
        clock.now += 2
        return ""

    rows = [
        StageRow("a", action, share=0.5),
        StageRow("b", action, share=1.0),
        StageRow("c", action),
    ]
    run_stages(rows, Deadline(10, clock), clock=clock)
    assert seen == [5.0, 8.0, 3.0]


def test_a_deadline_drawn_closer_holds_for_a_stage_that_runs(clock):
    whole = Deadline(10, clock)
    seen = []

    def action(deadline):
        seen.append(deadline.left())
        whole.shorten(1.0)
        seen.append(deadline.left())
        whole.shorten(5.0)
        seen.append(deadline.left())
        return ""

    run_stages([StageRow("a", action, share=1.0)], whole, clock=clock)
    assert seen == [10.0, 1.0, 1.0]


def test_a_deadline_never_goes_below_nothing(clock):
    deadline = Deadline(-3, clock)
    assert deadline.left() == 0.0
    assert deadline.expired
    clock.now += 5
    assert deadline.part(0.5).left() == 0.0


def test_an_interrupt_is_not_swallowed(clock):
    def interrupted(deadline):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stages([StageRow("a", interrupted)], Deadline(1, clock), clock=clock)
