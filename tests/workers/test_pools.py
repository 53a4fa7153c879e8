"""What every pool promises, whatever it runs jobs on."""

import gc
import threading
import weakref

import pytest
from meles.engine.errors import (
    ClosedError,
    CorruptionError,
    DiskFullError,
    InvariantError,
    JobCancelledError,
    WorkerFailedError,
)
from meles.engine.jobs import BuildOptions, FlushJob, JobResult, NewFile
from meles.engine.worker_info import WorkerInfo

DEADLINE = 80.0


def is_cancelled(outcome):
    return isinstance(outcome, tuple) and isinstance(outcome[0], JobCancelledError)


def test_a_job_is_done_and_its_result_comes_back(any_pool, recorder, acts, job):
    pool = any_pool()
    pool.submit(1, job(acts.ECHO, 17))
    assert recorder.wait(1) == JobResult((NewFile(5, 17, 7),), {"read_bytes": 17})


def test_jobs_submitted_before_start_are_done_after_it(any_pool, recorder, acts, job):
    pool = any_pool(start=False)
    pool.submit(1, job(acts.ECHO))
    assert recorder.order == []
    pool.start()
    assert isinstance(recorder.wait(1), JobResult)


@pytest.mark.parametrize(
    ("act", "error"),
    [("CORRUPT", CorruptionError), ("FULL", DiskFullError), ("BUG", WorkerFailedError)],
)
def test_a_job_that_raises_fails_once_with_its_type(any_pool, recorder, acts, job, act, error):
    pool = any_pool()
    pool.submit(1, job(getattr(acts, act)))
    pool.submit(2, job(acts.ECHO))
    failure, poisoned = recorder.wait(1)
    assert type(failure) is error
    assert not poisoned
    assert isinstance(recorder.wait(2), JobResult)
    assert recorder.count == {1: 1, 2: 1}
    pool.submit(1, job(acts.ECHO))  # answered, so the id is free again
    if error is CorruptionError:
        assert (failure.path, failure.offset, failure.kind) == ("tables/000007.sst", 12, "block")
    if error is WorkerFailedError:
        assert failure.kind == "flusher"
        assert failure.job == "flush memtable 7 to table 5"


def test_a_failure_is_let_go_of_without_the_collector(any_pool, recorder, acts, job, until):
    """It knows the frames it came through, and these the files and memtables of whoever called."""
    pool = any_pool()
    gc.collect()
    gc.disable()
    try:
        pool.submit(1, job(acts.FULL))
        failure = weakref.ref(recorder.wait(1)[0])
        recorder.by_id.clear()
        until(lambda: failure() is None, "the failure's end")
    finally:
        gc.enable()


def test_jobs_of_a_kind_start_in_order(any_pool, recorder, acts, job):
    pool = any_pool()
    for number in range(1, 31):
        pool.submit(number, job(acts.ECHO))
    recorder.wait_all(range(1, 31))
    assert recorder.order == list(range(1, 31))


def test_callbacks_and_calls_share_one_thread(any_pool, recorder, acts, job):
    pool = any_pool({"flusher": 2})
    called = threading.Event()
    pool.call_soon(lambda: recorder.threads.add(threading.current_thread()) or called.set())
    for number in range(10):
        pool.submit(number, job(acts.ECHO if number % 2 else acts.BUG))
    recorder.wait_all(range(10))
    assert called.wait(DEADLINE)
    assert len(recorder.threads) == 1
    assert (threading.current_thread() in recorder.threads) == (any_pool.mode == "inline")


def test_a_callback_may_submit_more(any_pool, recorder, acts, job):
    pool = any_pool()

    def then(job_id, _outcome):
        if job_id < 5:
            pool.submit(job_id + 1, job(acts.ECHO))

    recorder.then = then
    pool.submit(1, job(acts.ECHO))
    recorder.wait(5)
    assert recorder.order == [1, 2, 3, 4, 5]


def test_a_free_worker_is_counted_until_a_job_is_there_for_it(any_pool, recorder, acts, job):
    pool = any_pool()
    assert pool.free("flusher") == 1
    assert pool.free("compactor") == 0
    seen = []

    def then(job_id, _outcome):
        seen.append(pool.free("flusher"))
        if job_id == 1:
            pool.submit(2, job(acts.ECHO))
            pool.submit(3, job(acts.ECHO))
            seen.append(pool.free("flusher"))

    recorder.then = then
    pool.submit(1, job(acts.ECHO))
    recorder.wait(3)
    # Answered: free. Two more: not. The second of them still waits when the first is answered.
    assert seen == [1, 0, 0, 1]


def test_an_id_in_use_is_refused(any_pool, recorder, acts, job):
    pool = any_pool(start=False)
    pool.submit(1, job(acts.ECHO))
    with pytest.raises(InvariantError):
        pool.submit(1, job(acts.ECHO))
    pool.start()
    recorder.wait(1)
    pool.submit(1, job(acts.ECHO, 3))  # answered, so free again


def test_a_waiting_job_is_cancelled_without_being_run(any_pool, recorder, acts, job):
    pool = any_pool(start=False)
    pool.submit(1, job(acts.ECHO))
    pool.submit(2, job(acts.EXIT, 1))
    pool.cancel(2)
    pool.cancel(99)
    pool.start()
    assert is_cancelled(recorder.wait(2))
    assert isinstance(recorder.wait(1), JobResult)
    assert recorder.count == {1: 1, 2: 1}


def test_a_running_job_is_cancelled_at_its_next_sign_of_life(any_pool, recorder, acts, job, until):
    pool = any_pool()
    caller = threading.Thread(target=pool.submit, args=(1, job(acts.WAIT)))
    caller.start()
    until(lambda: pool.infos()[0].state == "busy", "a busy worker")
    assert pool.infos()[0].job == "flush memtable 2 to table 5"
    assert pool.free("flusher") == 0
    pool.cancel(1)
    assert is_cancelled(recorder.wait(1))
    caller.join(DEADLINE)
    pool.submit(2, job(acts.ECHO))
    assert isinstance(recorder.wait(2), JobResult)


def test_stopping_a_kind_cancels_its_jobs_and_leaves_the_others(
    any_pool, recorder, acts, job, compact_job, until
):
    pool = any_pool({"flusher": 1, "compactor": 1})
    caller = threading.Thread(target=pool.submit, args=(1, job(acts.WAIT)))
    caller.start()
    until(lambda: pool.infos()[0].state == "busy", "a busy worker")
    pool.submit(2, job(acts.ECHO))
    assert pool.stop_kind("flusher", DEADLINE)
    assert is_cancelled(recorder.wait(1))
    assert is_cancelled(recorder.wait(2))
    caller.join(DEADLINE)
    pool.submit(3, job(acts.ECHO))
    assert is_cancelled(recorder.wait(3))
    assert pool.free("flusher") == 0
    assert pool.free("compactor") == 1
    assert [info.state for info in pool.infos() if info.kind == "flusher"] == ["stopped"]
    assert pool.stop_kind("flusher", DEADLINE)
    assert pool.stop_kind("value_gc", DEADLINE)


def test_closing_answers_every_job_exactly_once(any_pool, recorder, acts, job, until):
    pool = any_pool({"flusher": 2})
    if any_pool.mode != "inline":
        pool.submit(0, job(acts.WAIT))
        until(lambda: any(info.state == "busy" for info in pool.infos()), "a busy worker")
    for number in range(1, 20):
        pool.submit(number, job(acts.ECHO))
    pool.close(DEADLINE)
    expected = set(range(0 if any_pool.mode != "inline" else 1, 20))
    assert set(recorder.count) == expected
    assert set(recorder.count.values()) == {1}
    pool.close(DEADLINE)
    assert pool.free("flusher") == 0
    assert all(info.state == "stopped" for info in pool.infos())


def test_closing_a_pool_that_was_never_started_answers_too(any_pool, recorder, acts, job):
    pool = any_pool(start=False)
    pool.submit(1, job(acts.ECHO))
    pool.close(DEADLINE)
    assert is_cancelled(recorder.wait(1))


def test_a_closed_pool_takes_no_jobs_and_runs_no_calls(any_pool, recorder, acts, job):
    pool = any_pool()
    pool.close(DEADLINE)
    with pytest.raises(ClosedError):
        pool.submit(1, job(acts.ECHO))
    called = []
    pool.call_soon(lambda: called.append(1))
    pool.call_later(0, lambda: called.append(1))
    pool.cancel(1)
    assert called == []
    assert recorder.count == {}


def test_concurrent_closes_all_return_when_it_is_closed(any_pool, acts, recorder, job):
    pool = any_pool({"flusher": 2})
    pool.submit(1, job(acts.ECHO))
    closers = [threading.Thread(target=pool.close, args=(DEADLINE,)) for _ in range(4)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join(DEADLINE)
        assert not closer.is_alive()
    recorder.wait(1)


def test_calls_run_in_order_and_later_ones_when_due(any_pool):
    pool = any_pool()
    seen, done = [], threading.Event()
    pool.call_later(0.0, lambda: seen.append("timer"))
    for number in range(20):
        pool.call_soon(lambda number=number: seen.append(number))
    pool.call_later(0.01, done.set)
    while not done.wait(0.02):  # inline timers run when somebody calls
        pool.call_soon(lambda: None)
    assert [entry for entry in seen if entry != "timer"] == list(range(20))
    assert "timer" in seen


def test_a_callback_that_raises_is_reported_and_nothing_stops(any_pool, recorder, acts, job):
    pool = any_pool()

    def then(_job_id, _outcome):
        raise ZeroDivisionError("in a callback")

    recorder.then = then
    for number in range(1, 5):
        pool.submit(number, job(acts.ECHO if number % 2 else acts.BUG))
    recorder.wait_all(range(1, 5))
    done = threading.Event()
    pool.call_soon(done.set)
    assert done.wait(DEADLINE)
    assert [type(error) for error in recorder.errors] == [ZeroDivisionError] * 4


def test_workers_are_listed_by_name(any_pool):
    pool = any_pool({"flusher": 1, "compactor": 2, "value_gc": 1})
    infos = pool.infos()
    assert all(isinstance(info, WorkerInfo) for info in infos)
    names = {info.name for info in infos}
    assert {"flusher-1", "compactor-1", "value_gc-1"} <= names
    assert all(info.restarts == 0 for info in infos)
    assert pool.problems() == []


def test_many_threads_may_submit(any_pool, recorder, acts, job):
    pool = any_pool({"flusher": 2})

    def submit(first):
        for number in range(first, first + 25):
            pool.submit(number, job(acts.ECHO, number))

    callers = [threading.Thread(target=submit, args=(first,)) for first in range(0, 100, 25)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(DEADLINE)
    answers = recorder.wait_all(range(100))
    assert [answer.counters["read_bytes"] for answer in answers] == list(range(100))
    assert set(recorder.count.values()) == {1}


@pytest.mark.parametrize("mode", ["process", "thread", "inline"])
def test_a_real_flush_job(mode, tmp_path, recorder):
    from meles.engine.fs.files import Directory
    from meles.engine.log.writer import LogWriter
    from meles.engine.memtable.memtable import Memtable
    from meles.engine.run_job import JobDirs
    from meles.engine.table.reader import Table
    from meles.workers.parent.make_pool import make_pool

    with Directory(str(tmp_path)) as directory:
        log = LogWriter(directory, 1)
        memtable = Memtable.create(log)
        for number in range(1, 501):
            memtable.put(b"key%05d" % number, b"v" * number, 0, 0, 0, number)
        memtable.last_ts = 500
        end = memtable.end
        memtable.seal()
        log.close()
        pool = make_pool(
            mode, {"flusher": 1}, JobDirs(directory, directory),
            heartbeat=0.5, hang_timeout=20, memory_limit=None,
            on_rerun=recorder.on_rerun, **recorder.callbacks,
        )  # fmt: skip
        pool.start()
        pool.submit(1, FlushJob(1, end, 9, BuildOptions(), 0))
        result = recorder.wait(1)
        pool.submit(2, FlushJob(1, end, 9, BuildOptions(), 0))
        refused, poisoned = recorder.wait(2)
        pool.submit(3, FlushJob(77, end, 10, BuildOptions(), 0))
        missing, _ = recorder.wait(3)
        pool.close(DEADLINE)
        assert isinstance(result, JobResult), result
        assert result.files[0].id == 9
        assert result.files[0].size == (tmp_path / "000009.sst").stat().st_size
        assert isinstance(refused, FileExistsError)
        assert not poisoned
        assert isinstance(missing, FileNotFoundError)
        table = Table(directory, 9)
        assert table.meta.count == 500
        table.close()
        mapping = memtable.map
        memtable.index.release()
        mapping.close()  # a kept exception may hold this frame, and so the descriptor
