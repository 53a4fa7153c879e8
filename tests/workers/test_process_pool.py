"""Worker processes: what they are, what kills them, and what becomes of their jobs."""

import logging
import os
import random
import signal
import sys
import threading
from pathlib import Path

import psutil
import pytest
from meles.engine.errors import InvariantError, JobCancelledError, WorkerFailedError
from meles.engine.jobs import JobResult
from meles.workers.wire.errors import LocalProtocolError, RemoteTracebackError

DEADLINE = 80.0


@pytest.fixture
def idle(until):
    """Waits until every worker of a pool is idle; their pids."""

    def wait(pool):
        until(lambda: all(info.state == "idle" for info in pool.infos()), "all workers idle")
        return [info.pid for info in pool.infos()]

    return wait


def busy_pid(pool, until):
    until(lambda: any(info.state == "busy" for info in pool.infos()), "a busy worker")
    return next(info.pid for info in pool.infos() if info.state == "busy")


# -- what a worker is ----------------------------------------------------------------------------


def test_a_worker_is_protected_and_polite_to_the_host(process_pool, idle, tmp_path):
    (pid,) = idle(process_pool(real=True))
    process = psutil.Process(pid)
    status = Path(f"/proc/{pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert process.nice() == min(psutil.Process().nice() + 5, 19)
    assert os.getpgid(pid) == pid  # Ctrl-C on the terminal is not for it
    assert os.getsid(pid) == os.getsid(0)  # or its niceness would not count beside the host
    ignored = int(status.split("SigIgn:\t")[1].split()[0], 16)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        assert ignored >> (number - 1) & 1
    command = process.cmdline()
    assert command[:5] == [sys.executable, "-P", "-m", "meles.workers.child.main", "flusher"]
    assert command[5] == "flusher-1"
    assert str(tmp_path) not in " ".join(command)


def test_a_worker_has_the_descriptors_it_was_given_and_no_other(
    process_pool, idle, recorder, acts, job, tmp_path
):
    with (tmp_path / "of the host").open("w") as inheritable:
        os.set_inheritable(inheritable.fileno(), True)
        pool = process_pool({"flusher": 3})
        pids = idle(pool)
        given = psutil.Process(pids[2]).cmdline()[-1].split(",")
        found = {}
        for name in os.listdir(f"/proc/{pids[2]}/fd"):
            found[int(name)] = os.readlink(f"/proc/{pids[2]}/fd/{name}")
    assert set(found) == {0, 1, 2, *map(int, given)}
    jobs, answers, log, tables, values = (found[int(fd)] for fd in given)
    assert found[0] == "/dev/null"
    assert found[1] == found[2] == log
    assert len({jobs, answers, log}) == 3
    assert all(name.startswith("pipe:") for name in (jobs, answers, log))
    assert tables == values == str(tmp_path)
    assert min(map(int, given)) > 2


def test_workers_report_memory_and_cpu(process_pool, idle):
    pool = process_pool()
    idle(pool)
    (info,) = pool.infos()
    assert info.rss_bytes > 1 << 20
    assert info.cpu_seconds > 0


def test_neither_the_current_directory_nor_python_variables_reach_a_worker(
    process_pool, idle, tmp_path, monkeypatch
):
    for name in ("msgpack.py", "crc32c.py", "logging.py", "sitecustomize.py"):
        (tmp_path / name).write_text("raise SystemExit('hijacked')")
    (tmp_path / "meles").mkdir()
    (tmp_path / "meles" / "__init__.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f":.{os.pathsep}")
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "msgpack.py"))
    monkeypatch.setenv("MELES_ENCRYPTION_KEY", "canary" * 4)
    pool = process_pool(real=True)
    (pid,) = idle(pool)
    assert pool.infos()[0].restarts == 0
    assert b"canary" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert os.readlink(f"/proc/{pid}/cwd") == "/"


def test_a_group_signal_does_not_end_a_worker(process_pool, idle, recorder, acts, job):
    pool = process_pool()
    (pid,) = idle(pool)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    pool.submit(1, job(acts.ECHO))
    assert isinstance(recorder.wait(1), JobResult)
    assert pool.infos()[0].pid == pid


def test_out_of_memory_is_an_answer_and_the_worker_lives(process_pool, idle, recorder, acts, job):
    pool = process_pool(memory_limit=512 << 20)
    (pid,) = idle(pool)
    pool.submit(1, job(acts.MEMORY, 1 << 30))
    error, poisoned = recorder.wait(1)
    assert isinstance(error, MemoryError)
    assert isinstance(error.__cause__, RemoteTracebackError)
    assert not poisoned
    pool.submit(2, job(acts.MEMORY, 1 << 20))
    assert isinstance(recorder.wait(2), JobResult)
    assert pool.infos()[0].pid == pid


# -- death ---------------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_its_job_runs_again(
    process_pool, recorder, acts, job, until, idle
):
    pool = process_pool({"flusher": 2})
    pool.submit(1, job(acts.WAIT))
    pid = busy_pid(pool, until)
    os.kill(pid, signal.SIGKILL)
    until(lambda: recorder.reruns == [1], "a rerun")
    assert busy_pid(pool, until) != pid
    pool.cancel(1)
    assert isinstance(recorder.wait(1)[0], JobCancelledError)
    until(lambda: sum(info.restarts for info in pool.infos()) == 1, "a restart")
    assert pid not in idle(pool)
    assert recorder.count == {1: 1}


def test_an_idle_worker_that_dies_is_replaced_at_once(process_pool, idle, recorder, acts, job):
    pool = process_pool()
    (pid,) = idle(pool)
    os.kill(pid, signal.SIGKILL)
    pool.submit(1, job(acts.ECHO))
    assert isinstance(recorder.wait(1), JobResult)
    assert idle(pool) != [pid]
    assert pool.problems() == []


def test_a_job_that_ends_three_workers_is_given_up(process_pool, recorder, acts, job):
    pool = process_pool()
    pool.submit(1, job(acts.EXIT, 99))
    pool.submit(2, job(acts.ECHO))
    error, poisoned = recorder.wait(1)
    assert poisoned
    assert type(error) is WorkerFailedError
    assert (error.kind, error.job) == ("flusher", "flush memtable 3 to table 5")
    assert "exit code 99" in error.message
    assert recorder.reruns == [1, 1]
    assert any("ended 3 workers" in problem for problem in pool.problems())
    assert isinstance(recorder.wait(2), JobResult)


def test_the_scheduler_may_change_a_job_before_it_runs_again(process_pool, recorder, acts, job):
    pool = process_pool(on_rerun=lambda job_id, _job: job(acts.ECHO, 41))
    pool.submit(1, job(acts.EXIT, 1))
    assert recorder.wait(1).counters == {"read_bytes": 41}


def test_a_job_fails_when_the_scheduler_cannot_clean_up_after_it(process_pool, recorder, acts, job):
    def on_rerun(job_id, _job):
        raise OSError(5, "cannot unlink")

    pool = process_pool(on_rerun=on_rerun)
    pool.submit(1, job(acts.EXIT, 1))
    error, poisoned = recorder.wait(1)
    assert error.errno == 5
    assert not poisoned


def test_a_cancelled_job_does_not_run_again_when_its_worker_dies(
    process_pool, recorder, acts, job, until
):
    pool = process_pool()
    pool.submit(1, job(acts.SPIN))
    pid = busy_pid(pool, until)
    pool.cancel(1)
    told = threading.Event()
    pool.call_soon(told.set)
    assert told.wait(DEADLINE)
    os.kill(pid, signal.SIGKILL)
    error, poisoned = recorder.wait(1)
    assert isinstance(error, JobCancelledError)
    assert isinstance(error.__cause__, WorkerFailedError)
    assert not poisoned
    assert recorder.reruns == []


def test_kills_at_random_moments_lose_and_double_nothing(process_pool, recorder, acts, job, until):
    rng = random.Random(5)
    pool = process_pool({"flusher": 4})
    total = 400
    for number in range(total):
        pool.submit(number, job(acts.LOG if number % 7 == 0 else acts.ECHO, number % 50))
    for victim in range(8):
        until(lambda at=victim: len(recorder.order) >= at * total // 10, "progress")
        pids = [info.pid for info in pool.infos() if info.pid is not None]
        if pids:
            try:
                os.kill(rng.choice(pids), signal.SIGKILL)
            except ProcessLookupError:
                continue
    answers = recorder.wait_all(range(total))
    assert all(isinstance(answer, JobResult) for answer in answers)
    assert set(recorder.count.values()) == {1}
    assert recorder.errors == []


def test_deaths_are_noticed_on_a_kernel_without_pidfds(
    process_pool, recorder, acts, job, until, idle, monkeypatch
):
    def refuse(_pid):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    pool = process_pool({"flusher": 2}, hang_timeout=0.5)
    pids = idle(pool)
    os.kill(pids[0], signal.SIGKILL)
    os.kill(pids[1], signal.SIGSTOP)
    until(lambda: {info.pid for info in pool.infos()}.isdisjoint({*pids, None}), "new workers")
    pool.submit(1, job(acts.ECHO))
    assert isinstance(recorder.wait(1), JobResult)
    assert pool.stop_kind("flusher", DEADLINE) is True


# -- silence -------------------------------------------------------------------------------------


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_a_stopped_worker_is_killed_and_replaced(
    process_pool, recorder, acts, job, until, idle, busy
):
    pool = process_pool(hang_timeout=0.5, boot_timeout=3600)
    (pid,) = idle(pool)
    if busy:
        pool.submit(1, job(acts.WAIT))
        busy_pid(pool, until)
    os.kill(pid, signal.SIGSTOP)
    until(lambda: pool.infos()[0].pid not in (pid, None), "a new worker")
    if busy:
        until(lambda: recorder.reruns == [1], "a rerun")
        busy_pid(pool, until)
        pool.cancel(1)
        assert isinstance(recorder.wait(1)[0], JobCancelledError)
    pool.submit(2, job(acts.ECHO))
    assert isinstance(recorder.wait(2), JobResult)


def test_a_job_that_freezes_its_workers_is_given_up(process_pool, recorder, acts, job):
    pool = process_pool(hang_timeout=0.3)
    pool.submit(1, job(acts.FREEZE))
    error, poisoned = recorder.wait(1)
    assert poisoned
    assert "was silent" in error.message


def test_a_job_that_beats_without_progress_is_stuck(process_pool, recorder, acts, job):
    pool = process_pool(hang_timeout=0.3, heartbeat=0.02)
    pool.submit(1, job(acts.SPIN))
    error, poisoned = recorder.wait(1)
    assert poisoned
    assert "made no progress" in error.message


def test_a_long_job_that_shows_progress_is_left_alone(process_pool, recorder, acts, job, until):
    pool = process_pool(hang_timeout=0.2, heartbeat=0.02)
    pool.submit(1, job(acts.WAIT))
    pid = busy_pid(pool, until)
    passed = threading.Event()
    pool.call_later(1.5, passed.set)  # longer than a job without progress would be given
    assert passed.wait(DEADLINE)
    assert busy_pid(pool, until) == pid
    assert recorder.reruns == []
    pool.cancel(1)
    recorder.wait(1)


def test_a_control_thread_that_was_held_up_kills_nobody(process_pool, recorder, idle):
    pool = process_pool({"flusher": 2}, hang_timeout=0.4, heartbeat=0.05)
    pids = idle(pool)
    held, over = threading.Event(), threading.Event()
    pool.call_soon(lambda: held.wait(1.5))
    pool.call_soon(over.set)
    assert over.wait(DEADLINE)
    assert idle(pool) == pids


# -- nonsense ------------------------------------------------------------------------------------


def test_garbage_from_a_worker_costs_that_worker_only(
    process_pool, recorder, acts, job, compact_job, idle
):
    pool = process_pool({"flusher": 1, "compactor": 1})
    pids = idle(pool)
    pool.submit(1, job(acts.GARBAGE, 5000))
    error, poisoned = recorder.wait(1)
    assert poisoned
    assert "broke the protocol" in error.message
    assert pool.infos()[1].pid == pids[1]
    assert recorder.errors == []


def test_an_answer_of_an_older_generation_is_dropped(process_pool, recorder, acts, job, idle):
    pool = process_pool()
    (pid,) = idle(pool)
    for number in range(5):
        pool.submit(number, job(acts.STALE))
    answers = recorder.wait_all(range(5))
    assert all("wrong" not in answer.counters for answer in answers)
    assert set(recorder.count.values()) == {1}
    assert pool.infos()[0].pid == pid


def test_an_answer_from_the_future_costs_the_worker(process_pool, recorder, acts, job):
    pool = process_pool()
    pool.submit(1, job(acts.FUTURE))
    error, poisoned = recorder.wait(1)
    assert poisoned
    assert "answered generation" in error.message


FAKES = {
    "speaks another release": (
        "from meles.workers.wire.messages import Hello, encode\n"
        "os.write(answers, encode(Hello(1, '0.0.9', 'python', os.getpid(), 'flusher')))\n"
        "time.sleep(3600)",
        "restart it",
    ),
    "speaks another protocol": (
        "from meles.workers.wire.messages import Hello, PACKAGE_VERSION, encode\n"
        "os.write(answers, encode(Hello(9, PACKAGE_VERSION, 'python', 1, 'flusher')))\n"
        "time.sleep(3600)",
        "protocol 9",
    ),
    "speaks out of turn": (
        "from meles.workers.wire.messages import Ready, encode\n"
        "os.write(answers, encode(Ready()))\ntime.sleep(3600)",
        "said Ready while greeting",
    ),
    "claims a huge frame": (
        "os.write(answers, b'\\xff' * 100)\ntime.sleep(3600)",
        "claims 4,294,967,295 bytes",
    ),
    "closes its pipe": ("os.close(answers)\ntime.sleep(3600)", "killed by SIGKILL"),
    "cannot import": (
        "import no_such_module_anywhere",
        "No module named 'no_such_module_anywhere'",
    ),
    "ends at once": ("sys.exit(3)", "could not start (exit code 3)"),
    "says nothing": ("time.sleep(3600)", "was not ready after"),
}


@pytest.mark.parametrize("fake", FAKES, ids=list(FAKES))
def test_a_worker_that_cannot_boot_is_given_up_on_and_said_why(process_pool, until, fake):
    code, reason = FAKES[fake]
    prelude = "import os, sys, time\nanswers = int(sys.argv[-1].split(',')[1])\n"
    pool = process_pool(
        command=[sys.executable, "-P", "-c", prelude + code],
        hang_timeout=1.0 if fake == "says nothing" else 20.0,
        boot_timeout=1.0 if fake == "says nothing" else 20.0,
    )
    until(lambda: pool.free("flusher") == 0, "giving up")
    until(lambda: any("failed to start 3 times" in text for text in pool.problems()), "a reason")
    (problem,) = pool.problems()
    assert reason in problem
    assert problem.startswith("flusher-1 ")


def test_no_interpreter_is_a_reason_too(process_pool, until):
    pool = process_pool(command=["/no/such/python"])
    until(lambda: any("cannot be spawned" in text for text in pool.problems()), "a reason")
    assert pool.infos()[0].state == "restarting"


# -- pipes ---------------------------------------------------------------------------------------


def test_a_worker_that_does_not_read_blocks_nobody(
    process_pool, recorder, compact_job, acts, job, idle, until
):
    pool = process_pool({"compactor": 1, "flusher": 1}, hang_timeout=1.0)
    pid = idle(pool)[0]
    os.kill(pid, signal.SIGSTOP)
    pool.submit(1, compact_job(splits=tuple(bytes(60_000) for _ in range(15))))
    pool.submit(2, job(acts.ECHO))
    assert isinstance(recorder.wait(2), JobResult)
    outcome = recorder.wait(1)  # the worker was killed, the next one could read
    assert not isinstance(outcome, JobResult)
    assert isinstance(outcome[0], WorkerFailedError)  # a scripted worker cannot compact
    assert recorder.reruns == [1]


def test_a_job_beyond_the_limit_fails_without_a_worker(
    process_pool, recorder, compact_job, acts, job, idle
):
    pool = process_pool({"compactor": 1})
    (pid,) = idle(pool)
    pool.submit(1, compact_job(splits=tuple(bytes(60_000) for _ in range(20))))
    error, poisoned = recorder.wait(1)
    assert isinstance(error, LocalProtocolError)
    assert not poisoned
    assert pool.infos()[0].pid == pid


def test_an_answer_larger_than_the_pipe_comes_through(process_pool, recorder, acts, job):
    pool = process_pool()
    pool.submit(1, job(acts.GROW, 40_000))
    assert len(recorder.wait(1).files) == 40_000


def test_an_answer_beyond_the_limit_is_a_failure(process_pool, recorder, acts, job):
    pool = process_pool()
    pool.submit(1, job(acts.GROW, 200_000))
    error, poisoned = recorder.wait(1)
    assert isinstance(error, WorkerFailedError)
    assert "the limit is" in error.message
    assert not poisoned


def test_what_a_worker_prints_is_logged_and_not_spoken(process_pool, recorder, acts, job, caplog):
    caplog.set_level(logging.WARNING, "meles")
    pool = process_pool()
    pool.submit(1, job(acts.PRINT))
    assert isinstance(recorder.wait(1), JobResult)
    pool.close(DEADLINE)
    printed = [r.getMessage() for r in caplog.records if r.name == "meles.worker.flusher-1"]
    assert printed == ["printed by a job", "printed on stderr"]


# -- stopping ------------------------------------------------------------------------------------


def test_a_stopped_process_is_ended_by_the_ladder(process_pool, idle, recorder, dead):
    pool = process_pool({"flusher": 2})
    pids = idle(pool)
    os.kill(pids[0], signal.SIGSTOP)
    assert pool.stop_kind("flusher", 0.5) is False
    assert all(map(dead, pids))


def test_a_job_that_takes_no_notice_ends_with_its_pipe(
    process_pool, recorder, acts, job, until, dead, caplog
):
    """The second rung: nobody need be killed who can still see that the pipe has ended."""
    caplog.set_level(logging.DEBUG, "meles.workers")
    pool = process_pool()
    pool.submit(1, job(acts.SPIN))
    pid = busy_pid(pool, until)
    until(lambda: any("spins" in message for message in caplog.messages), "the job in the worker")
    assert pool.stop_kind("flusher", 3.0) is False
    assert isinstance(recorder.wait(1)[0], JobCancelledError)
    assert dead(pid)
    assert caplog.messages[-1] == "flusher-1 found its job pipe closed (exit code 4)"


def test_a_hurried_stop_does_not_take_its_time(process_pool, recorder, acts, job, until, dead):
    pool = process_pool()
    pool.submit(1, job(acts.SPIN))
    pid = busy_pid(pool, until)
    stopper = threading.Thread(target=pool.stop_kind, args=("flusher", 3600))
    stopper.start()
    until(lambda: pool.free("flusher") == 0, "the stop")
    pool.call_later(0.01, lambda: pool.hurry(0))
    stopper.join(DEADLINE)
    assert not stopper.is_alive()
    assert dead(pid)


def test_workers_that_only_just_start_leave_politely(process_pool):
    pool = process_pool({"flusher": 2}, real=True)
    assert pool.stop_kind("flusher", DEADLINE) is True


def test_stopping_without_time_kills_at_once(process_pool, idle, dead):
    pool = process_pool()
    (pid,) = idle(pool)
    pool.stop_kind("flusher", 0)
    assert dead(pid)


def test_the_control_thread_refuses_to_wait_for_itself(process_pool, recorder):
    pool = process_pool()
    done = threading.Event()
    pool.call_soon(lambda: pool.close(1))
    pool.call_soon(lambda: pool.stop_kind("flusher", 1))
    pool.call_soon(done.set)
    assert done.wait(DEADLINE)
    assert [type(error) for error in recorder.errors] == [InvariantError] * 2
