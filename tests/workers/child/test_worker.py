"""A worker process seen from its pipes: the handshake, when it leaves and with which code."""

import os
import select
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from meles.engine.errors import JobCancelledError
from meles.engine.jobs import BuildOptions, FlushJob, JobResult
from meles.workers.child.guard import check_descriptors
from meles.workers.child.loop import RunningJob
from meles.workers.parent.protocol import PoolDirs
from meles.workers.parent.spawn import high_fd, spawn
from meles.workers.wire.exit_codes import (
    EXIT_BOOT,
    EXIT_OK,
    EXIT_PARENT_GONE,
    EXIT_PROTOCOL,
    describe_exit,
)
from meles.workers.wire.framing import FrameDecoder
from meles.workers.wire.messages import (
    PACKAGE_VERSION,
    PROTOCOL_VERSION,
    Cancel,
    Heartbeat,
    Hello,
    JobDone,
    JobFailed,
    JobRequest,
    Ready,
    Setup,
    Stop,
    encode,
    parse,
)

SECONDS = 40
SETUP = Setup(heartbeat=0.02, log_level=20, memory_limit=None, tables="t", values="v")


class Talk:
    """The supervisor's end of one worker, driven by hand."""

    def __init__(self, directory, script):
        dirs = PoolDirs(directory, directory)
        command = [sys.executable, "-P", str(script)] if script else None
        self.child = spawn("flusher", "flusher-1", dirs, command)
        self._decoder = FrameDecoder()
        self._heard = []
        self.beats = []

    def say(self, *messages):
        self.raw(b"".join(map(encode, messages)))

    def raw(self, data):
        os.set_blocking(self.child.jobs_fd, True)
        os.write(self.child.jobs_fd, data)

    def hear(self, kind):
        """The next message that is not a heartbeat, which must be of this kind."""
        end = time.monotonic() + SECONDS
        while not self._heard:
            assert select.select([self.child.answers_fd], [], [], end - time.monotonic())[0]
            data = os.read(self.child.answers_fd, 65_536)
            assert data, f"the worker ended: {self.last_words()}"
            for plain in self._decoder.feed(data):
                message = parse(plain, to_child=False)
                (self.beats if isinstance(message, Heartbeat) else self._heard).append(message)
        message = self._heard.pop(0)
        assert isinstance(message, kind), message
        return message

    def hear_beats(self, wanted):
        end = time.monotonic() + SECONDS
        while not any(map(wanted, self.beats)):
            assert select.select([self.child.answers_fd], [], [], end - time.monotonic())[0]
            for plain in self._decoder.feed(os.read(self.child.answers_fd, 65_536)):
                self.beats.append(parse(plain, to_child=False))

    def boot(self):
        self.hear(Hello)
        self.say(SETUP)
        self.hear(Ready)

    def exit(self):
        assert select.select([self.child.death_fd], [], [], SECONDS)[0]
        return self.child.poll()

    def last_words(self):
        try:
            return os.read(self.child.log_fd, 65_536).decode("utf-8", "replace")
        except BlockingIOError:
            return ""

    def end(self):
        self.child.signal(signal.SIGKILL)
        self.exit()
        self.child.close()


@pytest.fixture
def talk(tmp_path):
    directory = high_fd(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))
    talks = []

    def make(script=Path(__file__).parents[1] / "scripted_child.py"):
        talks.append(Talk(directory, script))
        return talks[-1]

    yield make
    for each in talks:
        each.end()
    os.close(directory)


def request(job_id, act, argument=0, generation=1):
    return JobRequest(job_id, generation, FlushJob(act, argument, 5, BuildOptions(), 0))


@pytest.mark.parametrize("script", [None, "scripted"])
def test_it_introduces_itself_gets_ready_and_leaves_when_told(talk, script):
    worker = talk() if script else talk(None)
    hello = worker.hear(Hello)
    assert (hello.protocol, hello.package) == (PROTOCOL_VERSION, PACKAGE_VERSION)
    assert (hello.pid, hello.role) == (worker.child.pid, "flusher")
    worker.say(SETUP)
    worker.hear(Ready)
    worker.say(Stop())
    assert worker.exit() == EXIT_OK
    assert worker.last_words() == ""


def test_answers_carry_the_job_and_generation(talk, acts):
    worker = talk()
    worker.boot()
    worker.say(request(7, acts.ECHO, 9, generation=31))
    done = worker.hear(JobDone)
    assert (done.job_id, done.generation) == (7, 31)
    worker.say(request(8, acts.CORRUPT, generation=32))
    failed = worker.hear(JobFailed)
    assert (failed.job_id, failed.generation) == (8, 32)
    assert (failed.failure.kind, failed.failure.offset) == ("CorruptionError", 12)


def test_heartbeats_tell_of_the_job_and_its_progress(talk, acts):
    worker = talk()
    worker.boot()
    worker.hear_beats(lambda beat: beat == Heartbeat(0, 0, 0, 0))
    worker.say(request(7, acts.WAIT, generation=3))
    worker.hear_beats(lambda beat: beat.job_id == 7 and beat.ticks > 2)
    working = [beat for beat in worker.beats if beat.job_id]
    assert {beat.generation for beat in working} == {3}
    assert [beat.ticks for beat in working] == sorted(beat.ticks for beat in working)
    worker.say(Cancel(6), Cancel(7))
    assert worker.hear(JobFailed).failure.kind == "JobCancelledError"
    worker.beats.clear()
    worker.hear_beats(lambda beat: beat.job_id == 0)


def test_stop_cancels_what_runs_and_answers_for_it(talk, acts):
    worker = talk()
    worker.boot()
    worker.say(request(7, acts.WAIT), Stop())
    assert worker.hear(JobFailed).failure.kind == "JobCancelledError"
    assert worker.exit() == EXIT_OK


@pytest.mark.parametrize("state", ["greeting", "idle", "busy", "deaf"])
def test_the_end_of_its_pipe_ends_it_at_once(talk, acts, state):
    worker = talk()
    worker.hear(Hello) if state == "greeting" else worker.boot()
    if state in ("busy", "deaf"):
        worker.say(request(7, acts.WAIT if state == "busy" else acts.SPIN))
    worker.child.hang_up()
    assert worker.exit() == EXIT_PARENT_GONE


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\xff" * 16,
        encode(Ready()),
        encode(SETUP),
        encode(Cancel(1))[:-1] + b"\x00",
        encode(request(1, 9)) + encode(request(2, 9)),
    ],
    ids=["no frame", "wrong way", "second setup", "bad checksum", "two jobs"],
)
def test_nonsense_makes_it_leave_and_say_why(talk, nonsense):
    worker = talk()
    worker.boot()
    worker.raw(nonsense)
    assert worker.exit() == EXIT_PROTOCOL
    assert "meles worker:" in worker.last_words()


def test_a_job_before_setup_is_nonsense(talk):
    worker = talk()
    worker.hear(Hello)
    worker.say(request(1, 1))
    assert worker.exit() == EXIT_PROTOCOL


def test_a_supervisor_that_is_gone_already_is_noticed(tmp_path):
    """The race between the spawn and the request to be told of the parent's death."""
    read, write = os.pipe()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-P", "-m", "meles.workers.child.main", "flusher", "flusher-1", "1",
         f"{read},{write},{write},3,3"],
        os.environ,
    )  # fmt: skip
    _, status = os.waitpid(pid, 0)
    os.close(read)
    os.close(write)
    assert os.waitstatus_to_exitcode(status) == EXIT_PARENT_GONE


def test_arguments_that_make_no_sense_are_a_failure_to_start(capfd):
    for arguments in ([], ["flusher"], ["flusher", "f-1", str(os.getpid()), "0,1,2,3,4"]):
        command = [sys.executable, "-P", "-m", "meles.workers.child.main", *arguments]
        pid = os.posix_spawn(sys.executable, command, os.environ)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == EXIT_BOOT
    assert "descriptor 0 is a standard stream" in capfd.readouterr().err


def test_descriptors_of_the_wrong_kind_are_refused(tmp_path):
    read, write = os.pipe()
    directory = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(read, True)
    check_descriptors([read, write], [directory])
    assert not os.get_inheritable(read)
    for pipes, directories in (([directory], []), ([], [read])):
        with pytest.raises(ValueError, match="wrong kind"):
            check_descriptors(pipes, directories)
    for fd in (read, write, directory):
        os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        check_descriptors([read], [])


def test_a_job_sees_cancellation_where_it_reports_progress():
    job = RunningJob(request(7, 1))
    job.progress(100)
    assert (job.done_bytes, job.ticks) == (100, 1)
    job.cancelled = True
    with pytest.raises(JobCancelledError):
        job.progress(200)


def test_exits_are_described():
    assert describe_exit(0) == "left (exit code 0)"
    assert describe_exit(3) == "could not start (exit code 3)"
    assert describe_exit(77) == "ended (exit code 77)"
    assert describe_exit(-9) == "was killed by SIGKILL"
    assert describe_exit(-64) == "was killed by SIGRTMAX"
    assert "signal 200" in describe_exit(-200)


def test_a_worker_starts_without_what_only_some_need(talk):
    """Command line, progress bars, process statistics and encryption are not loaded."""
    worker = talk(None)
    worker.boot()
    maps = Path(f"/proc/{worker.child.pid}/maps").read_text()
    for name in ("psutil", "cryptography", "lz4", "cramjam", "_sqlite3", "_ssl"):
        assert f"/{name}" not in maps
    assert psutil.Process(worker.child.pid).num_threads() == 2
    assert JobResult
