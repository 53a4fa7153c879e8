"""What this process has resident of a file, or of all below a directory, as the system says."""

from __future__ import annotations

from pathlib import Path


def resident_of(path: Path | str, suffix: str = "") -> int:
    """Bytes of pages mapped of files whose path begins with `path` and ends with `suffix`."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.partition(" ")[0]
        if not first.endswith(":"):
            name = line.split(maxsplit=5)[5:]
            name = [part.removesuffix(" (deleted)") for part in name]
            counts = bool(name) and name[0].startswith(str(path)) and name[0].endswith(suffix)
        elif counts and first == "Rss:":
            total += int(line.split()[1]) << 10
    return total


class Watching:
    """A job context that looks, at each report, how much of the inputs is resident."""

    def __init__(self, path: Path | str, suffix: str) -> None:
        self._where = (path, suffix)
        self.looks: list[int] = []

    def progress(self, done_bytes: int) -> None:
        del done_bytes
        self.looks.append(resident_of(*self._where))
