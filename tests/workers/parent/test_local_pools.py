"""What only the pools within this process have to deal with."""

import threading

import pytest
from meles.engine.errors import JobCancelledError
from meles.engine.jobs import JobResult
from meles.workers.parent.inline_pool import InlinePool
from meles.workers.parent.thread_pool import ThreadPool

DEADLINE = 80.0


def test_a_thread_that_takes_no_notice_is_left_behind_and_its_job_answered(recorder, job):
    began, let_go = threading.Event(), threading.Event()

    def run(_job, _context):
        began.set()
        let_go.wait(DEADLINE)
        return JobResult((), {"late": 1})

    pool = ThreadPool({"flusher": 1}, run, **recorder.callbacks)
    pool.start()
    pool.submit(1, job(1))
    assert began.wait(DEADLINE)
    assert pool.stop_kind("flusher", 0.05) is False
    assert isinstance(recorder.wait(1)[0], JobCancelledError)
    let_go.set()
    pool.close(DEADLINE)
    assert recorder.count == {1: 1}, "the late result is dropped"


def test_an_interrupt_leaves_an_inline_pool_usable(recorder, job):
    def run(each, _context):
        if each.mem_id == 1:
            raise KeyboardInterrupt
        return JobResult((), {})

    pool = InlinePool({"flusher": 1}, run, **recorder.callbacks)
    pool.start()
    with pytest.raises(KeyboardInterrupt):
        pool.submit(1, job(1))
    assert isinstance(recorder.wait(1)[0], JobCancelledError)
    pool.submit(2, job(2))
    assert recorder.wait(2) == JobResult((), {})
    pool.close(DEADLINE)


def test_inline_calls_made_inside_a_call_run_after_it(recorder):
    pool = InlinePool({}, lambda _job, _context: None, **recorder.callbacks)
    pool.start()
    seen = []

    def outer():
        pool.call_soon(lambda: seen.append("inner"))
        seen.append("outer")

    pool.call_soon(outer)
    assert seen == ["outer", "inner"]


def test_inline_timers_run_with_the_first_call_after_they_are_due(recorder):
    now = [100.0]
    pool = InlinePool({}, lambda *_: None, **recorder.callbacks, clock=lambda: now[0])
    pool.start()
    seen = []
    pool.call_later(5.0, lambda: seen.append("five"))
    pool.call_later(2.0, lambda: seen.append("two"))
    pool.call_soon(lambda: seen.append("now"))
    now[0] += 6
    assert seen == ["now"]
    pool.call_soon(lambda: seen.append("then"))
    assert seen == ["now", "then", "two", "five"]
