"""Whether the paths of an open database still lead to it, or it was moved or replaced.

Runs in: supervisor, on the control thread; `problems` is read by any.
Invariants: (1) nothing is opened or written at a path: it is only asked what is there; (2) names
are those of the open directories, so whatever happens to a path, no file lands in another directory
and work goes on; who opens the path next finds something else, and that is worth a word; (3) who
comes back to its place is well again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from meles.engine.fs.files import Directory

log = logging.getLogger("meles.directory")


class Whereabouts:
    """Looks when asked to, and logs a warning when the answer changes."""

    def __init__(self, directories: Iterable[Directory]) -> None:
        self._directories = list(dict.fromkeys(directories))
        self.problems: list[str] = []

    def look(self) -> None:
        found = [
            f"{each.path} was moved, removed or replaced while it was open: what is written is in "
            "the directory that was opened, and not to be found at this path"
            for each in self._directories
            if not each.is_at_its_path()
        ]
        for problem in found:
            if problem not in self.problems:
                log.warning("%s", problem)
        self.problems = found
