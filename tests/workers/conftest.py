"""Pools over scripted jobs. The leak guard for all of `tests/workers` is in `tests/conftest.py`."""

import importlib.util
import os
import queue
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from meles.engine.jobs import BuildOptions, CompactJob, FlushJob
from meles.workers.parent.inline_pool import InlinePool
from meles.workers.parent.pool import ProcessPool
from meles.workers.parent.protocol import PoolDirs
from meles.workers.parent.thread_pool import ThreadPool
from waiting import wait_until

DEADLINE = 80.0  # seconds; generous, because nothing here measures time
SCRIPT = Path(__file__).parent / "scripted_child.py"


def is_dead(pid):
    """Gone, or a zombie nobody has reaped."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Recorder:
    """The callbacks of a pool; answers are kept by job id."""

    def __init__(self):
        self._answers = queue.Queue()
        self.by_id = {}
        self.count = {}
        self.reruns = []
        self.errors = []
        self.threads = set()
        self.order = []
        self.then = None  # called after each answer, in the callback

    def on_result(self, job_id, result):
        self._note(job_id, result)

    def on_failure(self, job_id, error, poisoned):
        self._note(job_id, (error, poisoned))

    def on_rerun(self, job_id, job):
        self.reruns.append(job_id)
        return job

    def on_error(self, error):
        self.errors.append(error)

    def _note(self, job_id, outcome):
        self.threads.add(threading.current_thread())
        self.order.append(job_id)
        self.count[job_id] = self.count.get(job_id, 0) + 1
        self._answers.put((job_id, outcome))
        if self.then is not None:
            self.then(job_id, outcome)

    def wait(self, job_id):
        end = time.monotonic() + DEADLINE
        while job_id not in self.by_id:
            answered, outcome = self._answers.get(timeout=max(0.1, end - time.monotonic()))
            self.by_id[answered] = outcome
        return self.by_id[job_id]

    def wait_all(self, job_ids):
        return [self.wait(job_id) for job_id in job_ids]

    @property
    def callbacks(self):
        return {"on_result": self.on_result, "on_failure": self.on_failure}


@pytest.fixture(scope="session")
def acts():
    """The numbers of what scripted jobs do, and `act` itself."""
    spec = importlib.util.spec_from_file_location("scripted_child", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def until():
    """Polls a condition of another process, for which there is nothing to wait on."""
    return lambda reached, what="it": wait_until(reached, DEADLINE)


@pytest.fixture
def dead():
    return is_dead


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def job():
    """A scripted job: what it does and how much of it."""
    return lambda act, argument=0: FlushJob(act, argument, 5, BuildOptions(), 0)


@pytest.fixture
def compact_job():
    def make(splits=()):
        return CompactJob(
            ((1, 2),), 0, 1, None, None, 3, 4, 1000, 0, 1, 0, (), BuildOptions(), 0, (), splits
        )

    return make


@pytest.fixture
def process_pool(tmp_path, recorder):
    """Makes process pools over scripted workers and closes them."""
    made = []
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)

    def make(counts=None, *, start=True, real=False, **options):
        settings = {
            "heartbeat": 0.1, "hang_timeout": 20.0, "memory_limit": None,
            "on_rerun": recorder.on_rerun, "on_error": recorder.on_error,
            "command": None if real else [sys.executable, "-P", str(SCRIPT)],
            **recorder.callbacks, **options,
        }  # fmt: skip
        dirs = PoolDirs(directory, directory, "the tables", "the values")
        pool = ProcessPool(counts or {"flusher": 1}, dirs, **settings)
        made.append(pool)
        if start:
            pool.start()
        return pool

    yield make
    for pool in made:
        pool.close(DEADLINE)
    os.close(directory)


@pytest.fixture(params=["process", "thread", "inline"])
def any_pool(request, acts, recorder):
    """Makes pools of each sort; `make.mode` says which."""
    made = []

    def run(job, context):
        return acts.act(job, context, -1)

    def make(counts=None, *, start=True):
        counts = counts or {"flusher": 1}
        if request.param == "process":
            return request.getfixturevalue("process_pool")(counts, start=start)
        cls = ThreadPool if request.param == "thread" else InlinePool
        pool = cls(counts, run, **recorder.callbacks, on_error=recorder.on_error)
        made.append(pool)
        if start:
            pool.start()
        return pool

    make.mode = request.param
    yield make
    for pool in made:
        pool.close(DEADLINE)
