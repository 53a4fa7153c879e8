"""What a worker process settles about itself before it does anything else.

Runs in: worker.
Invariants: (1) the worker dies with the thread that spawned it, even while stopped; (2) it can gain
no privileges; (3) it leaves when told over its pipe, not when a terminal or an init system signals
its group; (4) descriptors 0 to 2 are never files of the database; (5) it leaves no core dump when
it is given keys.
Fails with: `OSError` when the kernel refuses.
"""

from __future__ import annotations

import ctypes
import os
import signal
import stat
from typing import Final, NoReturn

from meles.workers.wire.exit_codes import EXIT_PARENT_GONE

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")


def tie_to_parent(parent: int) -> None:
    """Die when the spawning thread does. Leaves at once if that happened before this call."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if os.getppid() != parent:
        leave(EXIT_PARENT_GONE)


def ignore_signals() -> None:
    """Those sent to a whole group on Ctrl-C, by an init system, or when a terminal closes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def check_descriptors(pipes: list[int], directories: list[int]) -> None:
    """`OSError` or `ValueError` unless these are what they should be. None is passed on by exec."""
    for fd in (*pipes, *directories):
        if fd < 3:
            raise ValueError(f"descriptor {fd} is a standard stream")
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISDIR(mode) if fd in directories else stat.S_ISFIFO(mode)):
            raise ValueError(f"descriptor {fd} is of the wrong kind")
        os.set_inheritable(fd, False)


def limit_memory(limit: int | None) -> None:
    """Bytes of memory of its own from which allocations fail with `MemoryError`.

    Mapped tables do not count: how many a job reads says nothing of what it takes from others.
    """
    if limit is not None:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def forbid_core_dumps() -> None:
    """The memory of this process, which will hold keys, goes into no file, and nobody but root may
    look at it.
    """
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def leave(code: int) -> NoReturn:
    """End the process now, whatever its threads are doing."""
    os._exit(code)
