"""A host that dies, sleeps, forks, or was started oddly; each host is a process of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import meles
import psutil
import pytest

HERE = Path(__file__).parent
SECONDS = 40


class Host:
    def __init__(self, tmp_path, *, script=str(HERE / "scripted_child.py"), hang_timeout=20.0,
                 prefix=(), environ=None):  # fmt: skip
        self._fifo = tmp_path / "answers"
        os.mkfifo(self._fifo)
        command = [sys.executable, "-P", str(HERE / "pool_host.py")]
        arguments = [str(tmp_path), script, str(hang_timeout), str(self._fifo)]
        self.process = subprocess.Popen(
            [*prefix, *command, *arguments],
            stdin=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=environ,
        )
        self._answers = self._fifo.open()

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        return json.loads(self._answers.readline())

    def idle_pids(self, until):
        def idle():
            infos = self.ask("infos")
            return [pid for pid, _, _ in infos] if all(i[1] == "idle" for i in infos) else None

        until(idle, "idle workers")
        return [pid for pid, _, _ in self.ask("infos")]

    def end(self):
        self.process.kill()
        self.process.wait(SECONDS)
        self.process.stdin.close()
        self._answers.close()


@pytest.fixture
def host(tmp_path):
    hosts = []

    def make(**options):
        hosts.append(Host(tmp_path, **options))
        return hosts[-1]

    yield make
    for each in hosts:
        each.end()


@pytest.mark.parametrize("state", ["idle", "busy", "stopped"])
def test_workers_die_with_a_killed_host(host, until, dead, acts, state):
    one = host()
    pids = one.idle_pids(until)
    if state == "busy":
        one.ask(f"job {acts.SPIN} 0 leave")
        until(lambda: any(i[1] == "busy" for i in one.ask("infos")), "a busy worker")
    if state == "stopped":
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
    one.process.send_signal(signal.SIGKILL)
    until(lambda: all(map(dead, pids)), "the death of the workers")


def test_a_host_that_was_stopped_kills_nobody_when_it_wakes(host, until, acts):
    one = host(hang_timeout=0.4)
    pids = one.idle_pids(until)
    one.process.send_signal(signal.SIGSTOP)
    until(lambda: psutil.Process(one.process.pid).status() == psutil.STATUS_STOPPED, "the stop")
    with pytest.raises(subprocess.TimeoutExpired):
        one.process.wait(1.2)  # three times what a worker may be silent
    one.process.send_signal(signal.SIGCONT)
    assert one.ask(f"job {acts.ECHO} 3") == {"read_bytes": 3}
    assert [[pid, restarts] for pid, _, restarts in one.ask("infos")] == [[p, 0] for p in pids]


def test_a_fork_of_the_host_holds_nothing_and_harms_nothing(host, until, acts):
    one = host()
    pids = one.idle_pids(until)
    assert one.ask("fork") == 0
    assert one.ask(f"job {acts.ECHO} 3") == {"read_bytes": 3}
    assert [pid for pid, _, _ in one.ask("infos")] == pids
    assert one.ask("close") == []


def test_a_host_without_standard_streams(host, until, acts):
    shell = ["/bin/sh", "-c", 'exec "$@" >&- 2>&-', "sh"]
    one = host(prefix=shell)
    one.idle_pids(until)
    counters = one.ask(f"job {acts.FDS} 0")
    assert {"fd0", "fd1", "fd2"} <= set(counters)
    for fd in (0, 1, 2):
        target = os.readlink(f"/proc/{one.ask('infos')[0][0]}/fd/{fd}")
        assert target == "/dev/null" if fd == 0 else target.startswith("pipe:")
    held = {int(name) for name in os.listdir(f"/proc/{one.process.pid}/fd")}
    pipes = {
        fd
        for fd in held
        if os.readlink(f"/proc/{one.process.pid}/fd/{fd}").startswith("pipe:") and fd != 0
    }
    assert min(pipes) > 2
    assert one.ask("close") == []


def test_workers_run_the_files_of_a_checkout_of_any_name(tmp_path, host, until):
    root = Path(meles.__file__).parent
    checkout = tmp_path / "store-1.2"
    for part in ("engine", "workers"):
        shutil.copytree(root / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "__init__.py", checkout)
    loader = (
        "import importlib.util as u, runpy, sys\n"
        f"s = u.spec_from_file_location('meles', r'{checkout}/__init__.py',\n"
        f"    submodule_search_locations=[r'{checkout}'])\n"
        "m = sys.modules['meles'] = u.module_from_spec(s)\n"
        "s.loader.exec_module(m)\n"
        f"del sys.argv[:3]\nrunpy.run_path(r'{HERE / 'pool_host.py'}', run_name='__main__')\n"
    )
    one = host(prefix=[sys.executable, "-P", "-c", loader], script="real")
    for pid in one.idle_pids(until):
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        assert f"PYTHONPATH={checkout}/workers/child/bootstrap".encode() in environ
    assert one.ask("close") == []


def test_a_host_that_ends_without_closing_leaves_no_worker(host, until, dead):
    one = host(script="real")
    pids = one.idle_pids(until)
    one.process.stdin.close()  # its loop ends, and so does its interpreter
    one.process.wait(SECONDS)
    until(lambda: all(map(dead, pids)), "the death of the workers")
