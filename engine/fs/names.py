"""File names: the one place that makes and parses them.

Runs in: supervisor and workers.
Invariants: (1) a name is a number formatted here, never a path from outside; (2) what does not
parse is not ours and is never touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from typing import Final

from meles.engine.errors import InvariantError
from meles.engine.ids import MAX_FILE_ID

MANIFEST: Final = "MANIFEST"
MANIFEST_REWRITE: Final = "MANIFEST.new"
REGISTRY: Final = "KEYREGISTRY"
REGISTRY_REWRITE: Final = "KEYREGISTRY.new"
LOCK: Final = "LOCK"
ASIDE_SUFFIX: Final = ".aside"  # a damaged or unreachable file kept for a human


class Kind(Enum):
    """What a numbered file holds; the value is its extension."""

    TABLE = "sst"
    WAL = "mem"
    VLOG = "vlog"


_DIGITS: Final = {Kind.TABLE: 6, Kind.WAL: 5, Kind.VLOG: 6}
_NAME: Final = re.compile(r"(\d{5,12})\.(sst|mem|vlog)", re.ASCII)


def file_name(kind: Kind, file_id: int) -> str:
    """`000007.sst`, `00007.mem`, `000007.vlog`."""
    if not 0 < file_id <= MAX_FILE_ID:
        raise InvariantError(f"file id {file_id} is out of range")
    return f"{file_id:0{_DIGITS[kind]}d}.{kind.value}"


def parse_name(name: str) -> tuple[Kind, int] | None:
    """Kind and id, or None when the name is not exactly one that `file_name` makes."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    kind, file_id = Kind(match[2]), int(match[1])
    if not 0 < file_id <= MAX_FILE_ID or file_name(kind, file_id) != name:
        return None
    return kind, file_id


def ids_of(kind: Kind, names: Iterable[str]) -> list[int]:
    """Ids of all files of a kind among `names`, ascending."""
    suffix = f".{kind.value}"
    parsed = (parse_name(name) for name in names if name.endswith(suffix))
    return sorted(item[1] for item in parsed if item is not None)
