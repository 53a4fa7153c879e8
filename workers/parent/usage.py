"""Memory and CPU of worker processes, through psutil.

Runs in: supervisor, any thread.
Invariant: a process is known by id and creation time, so a reused id is never taken for a worker.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil


class Usage:
    """Remembers the processes it was asked about, and forgets those that are gone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[int, psutil.Process] = {}

    def of(self, pid: int | None) -> tuple[int, float]:
        """Resident bytes and CPU seconds (user and system); zeros for a process that is gone, and
        where there is no descriptor left to look.
        """
        if pid is None:
            return 0, 0.0
        try:
            import psutil  # 25 ms, for those who ask
        except (ImportError, OSError):
            return 0, 0.0

        with self._lock:
            try:
                process = self._known.get(pid)
                if process is None or not process.is_running():
                    process = psutil.Process(pid)
                    if process.ppid() != os.getpid():
                        raise psutil.NoSuchProcess(pid)
                    self._known[pid] = process
                with process.oneshot():
                    cpu = process.cpu_times()
                    return process.memory_info().rss, cpu.user + cpu.system
            except OSError:
                return 0, 0.0
            except psutil.Error:
                self._known.pop(pid, None)
                return 0, 0.0
