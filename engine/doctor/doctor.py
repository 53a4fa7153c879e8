"""`meles doctor`: does a directory open, why not, and what helps.

Runs in: supervisor.
Owns: the lock of the directory while it looks (shared) or changes anything (exclusive).
Invariants: (1) without `fix` nothing is changed; (2) the last word has an opening as anybody makes
it, not what was found here; (3) a round that changes nothing is the last.
Fails with: nothing that is wrong with the directory; `ConfigError` for a bad option.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from meles.engine.doctor.decide import decide, lost_values
from meles.engine.doctor.examine import examine, plain
from meles.engine.doctor.facts import Case, Do
from meles.engine.doctor.repair import Repair
from meles.engine.errors import (
    ConfigError,
    CorruptionError,
    DirectoryMissingError,
    EncryptionKeyError,
    Error,
    FormatVersionError,
    InvariantError,
    LockedError,
)
from meles.engine.fs.dir_lock import DirectoryLock, open_to_lock
from meles.engine.fs.names import REGISTRY
from meles.engine.keys_of_directory import open_directory_keys
from meles.engine.options import Options
from meles.engine.reports import Diagnosis, Finding
from meles.engine.run_job import JobDirs

if TYPE_CHECKING:
    from meles.engine.db import DB

Opener = Callable[[str], "DB"]  # takes the mode
_ROUNDS: Final = 6  # each cures what it found; names, then the MANIFEST, then what that names


def diagnose(
    path: str, options: Options, opener: Opener, *, fix: bool, wait: float = 0.0
) -> Diagnosis:
    """Look at a directory; with `fix`, repair it. `opener` opens it as anybody would."""
    done: list[str] = []
    first: list[Case] | None = None
    tried = _try(opener)
    for _ in range(_ROUNDS):
        if tried.error is not None and not isinstance(tried.error, CorruptionError):
            break
        cases, did = _treat(path, options, fix=fix, wait=wait)
        if not any(case.do is not Do.NOTHING for case in cases):
            cases += lost_values(tried.lost)
            did = _delete(opener, tried.lost, managed=options.managed) if fix else []
        first = cases if first is None else first
        if not did:
            break
        done += did
        tried = _try(opener)
    return Diagnosis(path, tried.fine, tried.text(), [_finding(case) for case in first or ()], done)


def _treat(path: str, options: Options, *, fix: bool, wait: float) -> tuple[list[Case], list[str]]:
    """Examine the files and, with `fix`, do what was decided."""
    with ExitStack() as stack:
        dirs = _locked(stack, path, options, shared=not fix, wait=wait)
        try:
            keys = open_directory_keys(dirs, options.encryption_key, math.inf, read_only=True)
        except CorruptionError as error:
            return [Case(REGISTRY, f"is damaged: {plain(error)}")], []
        dirs.tables.keys = dirs.values.keys = keys
        facts = examine(dirs)
        cases = decide(facts)
        return cases, Repair(dirs, options, facts).do(cases) if fix else []


def _delete(opener: Opener, keys: list[bytes], *, managed: bool) -> list[str]:
    """Delete keys whose values are lost: what a user would do, knowing them."""
    if not keys:
        return []
    with opener("own") as db:
        if managed:
            for key in keys:
                txn = db.update()
                txn.delete(key)
                txn.commit_at(db.max_version() + 1)
        else:
            with db.write_batch() as batch:
                for key in keys:
                    batch.delete(key)
        db.flush()
    return [f"value log: deleted {len(keys):,} keys whose values are lost"]


def _finding(case: Case) -> Finding:
    plan = "" if case.do is Do.NOTHING else case.do.value
    return Finding(case.name, case.what, plan, case.loses)


def _locked(stack: ExitStack, path: str, options: Options, *, shared: bool, wait: float) -> JobDirs:
    """The directories, locked."""
    places = [path]
    value_dir = options.value_dir
    if value_dir is not None and not os.path.samefile(value_dir, path):
        places.append(value_dir)
    found = []
    for place in places:
        directory = open_to_lock(os.path.abspath(place))
        stack.callback(directory.close)
        lock = DirectoryLock.acquire(directory, shared=shared, wait=wait)
        stack.callback(lock.release)
        found.append(directory)
    return JobDirs(found[0], found[-1])


@dataclass(frozen=True, slots=True)
class _Tried:
    """How an opening went: what kept it from opening, or what does not check out inside."""

    error: Exception | None = None
    problems: tuple[str, ...] = ()
    lost: list[bytes] = field(default_factory=list)  # keys whose newest value cannot be read

    @property
    def fine(self) -> bool:
        return self.error is None and not self.problems and not self.lost

    def text(self) -> str:
        if self.error is not None:
            return explain(self.error)
        if self.problems:
            return f"it opens, and not everything in it checks out: {self.problems[0]}"
        return f"it opens, and the values of {len(self.lost):,} keys are lost" if self.lost else ""


def _try(opener: Opener) -> _Tried:
    """Open for reading, check everything, and read every value."""
    try:
        with opener("read_only") as db:
            problems = tuple(db.verify().problems)
            return _Tried(None, problems, [] if problems else _lost(db))
    except (Error, OSError, InvariantError) as error:
        return _Tried(error)


def _lost(db: DB) -> list[bytes]:
    """Keys whose newest value cannot be read."""
    found = []
    for item in db.iterate(keys_only=True):
        try:
            db.get(item.key)
        except CorruptionError:
            found.append(item.key)
    return found


def explain(error: Exception) -> str:
    """Why a directory does not open, for somebody who has not read the manual."""
    if isinstance(error, LockedError):
        return f"somebody has it open: {error}"
    if isinstance(error, DirectoryMissingError):
        return f"there is no database: {error.message}"
    if isinstance(error, FormatVersionError):
        return f"it is of a newer version: {error}"
    if isinstance(error, ConfigError):
        return f"an option does not fit it: {error}"
    if isinstance(error, EncryptionKeyError):
        return f"the key does not fit: {error}"
    if isinstance(error, PermissionError):
        return f"this user may not read it: {error}"
    if isinstance(error, CorruptionError):
        return f"a file is damaged or missing: {error}"
    return f"the file system refuses: {error}"
