"""A wall clock that a test may turn, for a process and all it starts.

Python imports a module of this name at its start, so a folder on PYTHONPATH is enough. The file
named by TEST_CLOCK holds nanoseconds to add; the monotonic clock is the machine's own.
"""

import mmap
import os
import struct
import time

_path = os.environ.get("TEST_CLOCK")
if _path:
    with open(_path, "rb") as _file:
        _turned = mmap.mmap(_file.fileno(), 8, access=mmap.ACCESS_READ)
    _real = time.time_ns

    def time_ns() -> int:
        return _real() + struct.unpack("<q", _turned)[0]

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9
