"""SIGKILL at a system call that changes files: before it, or after a third of its bytes.

With jobs on the telling thread the n-th call is always the same one; with worker processes it is a
call of the supervisor or of a worker, and only the one that makes it is killed. `make test` takes a
sample, `make campaign` every call.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
from collections import Counter

import meles
import pytest
from story import OPTIONS, Story, content
from syscalls import start_watched

pytestmark = pytest.mark.usefixtures("syscalls_watched")

DEADLINE = 60.0
PART = int(os.environ.get("MELES_PART", "0")), int(os.environ.get("MELES_PARTS", "1"))


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """What there is after each commit of the story."""
    story = Story()
    story.tell(tmp_path_factory.mktemp("told") / "db")
    assert story.errors == []
    return story.states


class Telling:
    """One telling, struck at its n-th call."""

    def __init__(self, home, workers):
        self.popen, self.watcher = start_watched(
            "watched_story.py", str(home), workers, directory=str(home), session=True
        )
        self.pid = self.popen.pid
        self.kinds = Counter()
        self.seen = 0
        self.struck = ""  # the call, and who made it

    def strike_at(self, number, share):
        """Let all calls pass but that one; returns how many commits were acknowledged."""
        for call in self.watcher.calls(DEADLINE):
            self.seen += 1
            self.kinds[call.name] += 1
            if self.seen == number and (call.writes or not share):
                owner = _process_of(call.pid)
                self.struck = f"{call.name} by {'supervisor' if owner == self.pid else 'worker'}"
                if share:
                    call.do_part(share)
                os.kill(owner, signal.SIGKILL)
            else:
                call.allow()
        out, err = self.popen.communicate(timeout=DEADLINE)
        assert err == b"", err.decode()
        words = out.decode().split()
        assert (words[-1:] == ["closed"]) == (self.popen.returncode == 0), (words, self.struck)
        return words.count("acked")

    def close(self):
        self.watcher.close()
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.communicate()


def _process_of(thread):
    """A notification names the thread."""
    with open(f"/proc/{thread}/status") as file:
        return int(next(line for line in file if line.startswith("Tgid:")).split()[1])


def strike(home, states, number, *, workers="inline", share=0.0):
    """One trial; returns the telling, whose `struck` is empty when there was no such call."""
    with contextlib.closing(Telling(home, workers)) as telling:
        acknowledged = telling.strike_at(number, share)
    if telling.popen.returncode == 0:
        assert acknowledged == len(states) - 1
        assert content(home) == states[-1]
    elif "MANIFEST" not in os.listdir(home):
        assert acknowledged == 0
    else:
        assert telling.popen.returncode == -signal.SIGKILL
        found = content(home)
        assert found in states[acknowledged : acknowledged + 2]
        with meles.open(home, wait=30.0, **OPTIONS) as db:
            assert dict(db.items()) == found
            assert db.verify(values=True).ok
            db[b"next"] = b"x"
        assert content(home) == {**found, b"next": b"x"}
    return telling


@pytest.fixture(scope="module", params=["inline", "process"])
def workers(request):
    return request.param


@pytest.fixture(scope="module")
def calls(tmp_path_factory, states, workers):
    """How many calls a telling has; it must have met every kind of change."""
    telling = strike(tmp_path_factory.mktemp("whole") / "db", states, 0, workers=workers)
    wanted = {"openat", "pwrite64", "fdatasync", "fsync", "unlinkat", "fallocate", "renameat"}
    assert wanted <= telling.kinds.keys(), telling.kinds
    return telling.seen


def strike_each(shm_path, tally, states, workers, share, numbers):
    for number in numbers:
        home = shm_path / str(number)
        try:
            telling = strike(home, states, number, workers=workers, share=share)
        except BaseException as error:
            error.add_note(f"call {number}, workers {workers}, share {share}")
            raise
        how = "after a third of" if share else "before"
        who = telling.struck.rpartition(" ")[2] or "supervisor"
        tally(f"SIGKILL of a {who} {how} a call", 1, bool(telling.struck))
        shutil.rmtree(home)


@pytest.mark.parametrize("share", [0.0, 1 / 3], ids=["before", "within"])
def test_some_calls(shm_path, tally, states, workers, calls, share):
    numbers = random.Random(f"{workers}/{share}").sample(range(1, calls + 1), 4)
    strike_each(shm_path, tally, states, workers, share, numbers)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("share", [0.0, 1 / 3], ids=["before", "within"])
def test_each_call(shm_path, tally, states, workers, calls, share):
    part, parts = PART
    strike_each(shm_path, tally, states, workers, share, range(1 + part, calls + 1, parts))
