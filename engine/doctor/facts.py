"""What is true of the files of a directory, and what is to be done about it: plain data.

Runs in: supervisor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from meles.engine.fs.names import Kind
from meles.engine.manifest.version import TableMeta, Version, VlogMeta


@dataclass(frozen=True, slots=True)
class FileFact:
    """A numbered file. `says` is the number its header gives, None when that cannot be read.

    `problem` is in plain words and empty when every byte checks out; `known` is what the file says
    of itself, as far as that can be believed.
    """

    says: int | None = None
    problem: str = ""
    known: TableMeta | VlogMeta | None = None
    blank: bool = False  # nothing was ever written behind its header
    newer: bool = False  # written by a newer version of this software
    refers: frozenset[int] = frozenset()  # value-log files that the commits of a log point into


@dataclass(slots=True)
class Facts:
    """A directory. `version` is what the MANIFEST says, or as much of it as can be read."""

    version: Version | None = None
    external: int = 0
    encrypted: bool = False  # new files of the directory are sealed
    manifest_problem: str = ""
    manifest_newer: bool = False
    files: dict[tuple[Kind, int], FileFact] = field(default_factory=dict)
    aside: set[tuple[Kind, int]] = field(default_factory=set)

    def header_known(self, kind: Kind, number: int) -> bool:
        """Whether a file's header can be written anew: a sealed one has a salt of its own."""
        return not self.encrypted or self.named(kind, number) is not None

    def named(self, kind: Kind, number: int) -> TableMeta | VlogMeta | None:
        """What the MANIFEST says of a file."""
        if self.version is None:
            return None
        if kind is Kind.TABLE:
            return self.version.tables.get(number)
        return next((v for v in self.version.vlogs if kind is Kind.VLOG and v.id == number), None)

    def of(self, kind: Kind) -> dict[int, FileFact]:
        """The files of a kind by number, ascending."""
        return {number: self.files[kind, number] for at, number in sorted(
            self.files, key=lambda file: (file[0].value, file[1])) if at is kind}  # fmt: skip


class Do(Enum):
    """What can be done about a finding. Nothing is deleted: what is replaced is set aside."""

    NOTHING = "nothing"
    SWAP_BACK = "give the files their own names back"
    TAKE_BACK = "give the file that was set aside its name back"
    RESTORE_HEADER = "write the file's header anew"
    SALVAGE_TABLE = "copy what is readable into a new table"
    DROP_TABLE = "go on without the table"
    SALVAGE_VALUES = "keep the values that check out"
    BLANK_VALUES = "put an empty file in its place"
    SET_LOGS_ASIDE = "set the logs behind the gap aside"
    CUT_MANIFEST = "go on with what the MANIFEST says before the damage"
    DELETE_LOST = "delete the keys whose values are lost"
    REBUILD = "make a new MANIFEST from what the files say of themselves"


@dataclass(frozen=True, slots=True)
class Case:
    """Something wrong, what to do about it, and what that costs, in plain words."""

    name: str
    what: str
    do: Do = Do.NOTHING
    loses: str = ""
    kind: Kind = Kind.TABLE
    ids: tuple[int, ...] = ()
