"""What a core dump of this process holds.

Runs in: supervisor.
Invariants: (1) memory is only ever taken out of core dumps, nothing is put in; (2) debuggers and
profilers that attach go on working, which `PR_SET_DUMPABLE` 0 would end.
"""

from __future__ import annotations

import logging
from typing import Final

log = logging.getLogger("meles.fs")
_FILTER: Final = "/proc/self/coredump_filter"  # bits, see core(5)
# Private and shared memory of no file, and the same in huge pages: malloc can be told to use those.
# What is mapped from files stays (2, 3, 7, 8): they are sealed; so do headers of libraries (4).
_MEMORY: Final = 1 << 0 | 1 << 1 | 1 << 5 | 1 << 6


def leave_memory_out_of_core_dumps() -> None:
    """From now on, for good: keys that were here once cannot be wiped. Linux has it, and elsewhere
    nothing is done; processes started later have the same filter.
    """
    try:
        with open(_FILTER, "r+b", buffering=0) as file:
            was = int(file.read(), 16)
            if was & _MEMORY:
                file.write(b"%#x" % (was & ~_MEMORY))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        log.warning("a core dump would hold keys: %s cannot be changed: %s", _FILTER, error)
