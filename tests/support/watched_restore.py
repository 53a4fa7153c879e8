"""Restores in a process that asks before each call that changes files.

    python watched_restore.py SOCKET DIRECTORY SOURCE...

Sends the listener over the socket, and says `restored` at the end.
"""

from __future__ import annotations

import os
import sys

import meles
from syscalls import be_watched


def main() -> None:
    number, path, *sources = sys.argv[1:]
    be_watched(number)
    meles.restore(sources, path, base_table_size="64KiB", value_log_max_entries=8)
    os.write(1, b"restored\n")


if __name__ == "__main__":
    main()
