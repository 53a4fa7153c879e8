"""Starting one worker process. The only user of `subprocess`.

Runs in: supervisor, on the control thread: a worker dies with the thread that spawned it.
Owns: this side's ends of the pipes, and the process until it is reaped.
Invariants: (1) a worker inherits the five descriptors it is given and no other, none of them below
3; (2) the directories it gets are open file descriptions of their own, so no lock goes with them;
(3) its module path holds the supervisor's own package and no directory that depends on where
anybody stands; (4) nothing secret is in its environment.
Fails with: `OSError` (no descriptors, no processes, no Python).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from meles.workers.parent.protocol import PoolDirs

_BOOTSTRAP: Final = Path(__file__).resolve().parents[1] / "child" / "bootstrap"
_NICE: Final = 5  # the application's own core wins
_NICEST: Final = 19
_MODULE: Final = "meles.workers.child.main"
# Of the PYTHON* variables, those that say where things are; the rest change how code behaves.
_KEPT_PYTHON: Final = frozenset({
    "PYTHONHOME", "PYTHONNOUSERSITE", "PYTHONUSERBASE", "PYTHONPYCACHEPREFIX",
    "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "PYTHONPLATLIBDIR",
})  # fmt: skip
_KEPT_OURS: Final = frozenset(
    {"MELES_KERNEL", "MELES_CHECKS"}
)  # options go by the wire, a key never
_LOWEST_FD: Final = 3


def python_command() -> tuple[str, ...]:
    """What starts a worker, before its arguments. `FileNotFoundError` without an interpreter."""
    if not sys.executable:
        raise FileNotFoundError(errno.ENOENT, "no Python interpreter to start workers with")
    return (sys.executable, "-P", "-m", _MODULE)


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker: the host's, less what would change what it imports or does."""
    kept = {
        name: value
        for name, value in environ.items()
        if (not name.startswith("PYTHON") or name in _KEPT_PYTHON)
        and (not name.startswith("MELES_") or name in _KEPT_OURS)
    }
    path = environ.get("PYTHONPATH", "").split(os.pathsep)
    kept["PYTHONPATH"] = os.pathsep.join([str(_BOOTSTRAP), *filter(os.path.isabs, path)])
    return kept


def high_fd(fd: int) -> int:
    """The descriptor, moved out of 0-2, where a host started without them would print into it."""
    low = []
    try:
        while fd < _LOWEST_FD:
            low.append(fd)
            fd = os.dup(fd)
    finally:
        for each in low:
            os.close(each)
    return fd


def reopen_directory(fd: int) -> int:
    """The same directory through an open file description of its own, which shares no lock."""
    return high_fd(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd))


class ChildProcess:
    """A worker process and this side's descriptors. `exit` is None until it has been reaped."""

    def __init__(
        self, popen: subprocess.Popen[bytes], jobs_fd: int, answers_fd: int, log_fd: int
    ) -> None:
        self._popen = popen
        self.pid = popen.pid
        self.jobs_fd = jobs_fd
        self.answers_fd = answers_fd
        self.log_fd = log_fd
        self.death_fd = _pidfd(
            popen.pid
        )  # readable once it is dead; -1 where there is no such thing
        self.exit: int | None = None
        self._gave_way = False

    def poll(self) -> int | None:
        """Reap if dead. The exit code, negative for a signal; None while it lives."""
        if self.exit is None:
            self.exit = self._popen.poll()
        return self.exit

    def signal(self, number: int) -> None:
        """Send a signal, unless it is gone."""
        if self.poll() is not None:
            return
        try:
            if self.death_fd >= 0:
                signal.pidfd_send_signal(self.death_fd, number)
            else:
                self._popen.send_signal(number)
        except ProcessLookupError:
            pass

    def give_way(self) -> None:
        """From now on the application's own work comes first."""
        if not self._gave_way and self.poll() is None:
            self._gave_way = True
            _give_way(self.pid)

    def hang_up(self) -> None:
        """Close the job pipe: a worker that sees its end leaves at once."""
        fd, self.jobs_fd = self.jobs_fd, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Close this side's descriptors. Does not reap."""
        self.hang_up()
        for name in ("answers_fd", "log_fd", "death_fd"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)

    def disown(self) -> None:
        """Let go of a process that is not ours to reap, or that will not die."""
        self.close()
        if self._popen.returncode is None:
            self._popen.returncode = 0


def _pidfd(pid: int) -> int:
    try:
        return high_fd(os.pidfd_open(pid))
    except OSError:  # an old kernel, or no descriptors: the end of the answer pipe tells as well
        return -1


def _pipe(read_end: ExitStack, write_end: ExitStack) -> tuple[int, int]:
    """A pipe; each end is closed by its stack."""
    raw_read, raw_write = os.pipe()
    try:
        read_fd = high_fd(raw_read)
    except OSError:
        os.close(raw_write)
        raise
    read_end.callback(os.close, read_fd)
    write_fd = high_fd(raw_write)
    write_end.callback(os.close, write_fd)
    return read_fd, write_fd


def _give_way(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        ours = os.getpriority(os.PRIO_PROCESS, 0)
        # its group, which is all of its threads; of a process it would be the first one alone
        os.setpriority(os.PRIO_PGRP, pid, min(ours + _NICE, _NICEST))


def spawn(
    role: str, name: str, dirs: PoolDirs, command: Sequence[str] | None = None
) -> ChildProcess:
    """Start a worker. `dirs` come from `reopen_directory`; `command` replaces Python's.

    It has the niceness of this process until it is told to `give_way`.
    """
    with ExitStack() as theirs, ExitStack() as ours:
        jobs_read, jobs_write = _pipe(theirs, ours)
        answers_read, answers_write = _pipe(ours, theirs)
        log_read, log_write = _pipe(ours, theirs)
        for fd in (jobs_write, answers_read, log_read):
            os.set_blocking(fd, False)
        fds = (jobs_read, answers_write, log_write, dirs.tables_fd, dirs.values_fd)
        prefix = python_command() if command is None else command
        popen = subprocess.Popen(
            [*prefix, role, name, str(os.getpid()), ",".join(map(str, fds))],
            stdin=subprocess.DEVNULL,
            stdout=log_write,
            stderr=log_write,
            close_fds=True,
            pass_fds=fds,
            process_group=0,  # not a session: the niceness of one counts only inside of it
            cwd="/",
            env=child_environment(os.environ),
        )
        child = ChildProcess(popen, jobs_write, answers_read, log_read)
        ours.pop_all()
        return child
