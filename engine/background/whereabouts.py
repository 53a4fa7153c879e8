"""Whether the paths of an open database still lead to it, or it was moved or replaced.

Runs in: supervisor, on the control thread; `problems` is read by any.
Invariants: (1) nothing is opened or written at a path: it is only asked what is there; (2) names
are those of the open directories, so whatever happens to a path, no file lands in another directory
and what was begun is finished; (3) who opens the path next finds something else, so more writes are
refused; (4) who comes back to its place is well again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from meles.engine.errors import DirectoryMissingError
from meles.engine.fs.files import Directory

log = logging.getLogger("meles.directory")


class Whereabouts:
    """Looks when asked to, and logs a warning when the answer changes."""

    def __init__(self, directories: Iterable[Directory]) -> None:
        self._directories = list(dict.fromkeys(directories))
        self.problems: list[str] = []

    def look(self) -> list[str]:
        """What is wrong now, a text for each directory."""
        found = [
            f"{each.path} was moved, removed or replaced while it was open: what was written is in "
            "the directory that was opened, not at this path; writes are refused until it is back"
            for each in self._directories
            if not each.is_at_its_path()
        ]
        for problem in found:
            if problem not in self.problems:
                log.warning("%s", problem)
        for problem in self.problems:
            if problem not in found:
                log.warning("no more: %s", problem)
        self.problems = found
        return found


def moved(problems: list[str]) -> DirectoryMissingError:
    """What a write gets."""
    return DirectoryMissingError(
        "; ".join(problems),
        hint="move it back, or close this handle and open the database where it is now",
    )
