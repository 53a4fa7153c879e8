"""Tells the story in a process that asks before each call that changes files.

    python watched_story.py SOCKET DIRECTORY WORKERS

Sends the listener over the socket, then says `acked` for each commit and `closed` at the end.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import meles
from story import OPTIONS, Story
from syscalls import be_watched


class Telling(Story):
    def commit(self, db: meles.DB, changes: dict[bytes, bytes | None]) -> None:
        super().commit(db, changes)
        os.write(1, b"acked\n")


def main() -> None:
    number, home, workers = sys.argv[1:]
    be_watched(number)
    story = Telling({**OPTIONS, "workers": workers})
    story.tell(Path(home))
    assert story.errors == [], story.errors
    assert story.saw_everything(), f"void: {story.seen}"
    os.write(1, b"closed\n")


if __name__ == "__main__":
    main()
