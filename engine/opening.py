"""Opening a directory, up to an engine without workers: the steps, in order, each undone on
failure.

Runs in: supervisor.
Owns: what it opened, until the caller clears `unwind`.
Invariants: (1) a step may rely on all before it; (2) whatever a step makes it also registers with
`unwind`, so a failure anywhere leaves no lock, descriptor, mapping or stray file; (3) a read-only
opening writes nothing.
The order is Badger's; the locks are held from before the first read to after the last write.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from meles.engine import recovery
from meles.engine.codec.compression import CODEC_IDS, require
from meles.engine.crypt.registry import OwnedKeys
from meles.engine.engine import Engine
from meles.engine.errors import DirectoryMissingError, FormatVersionError, InvariantError
from meles.engine.fs.dir_lock import DirectoryLock, open_to_lock
from meles.engine.fs.files import Directory, make_directory
from meles.engine.fs.names import MANIFEST, REGISTRY, Kind, file_name
from meles.engine.fs.ownership import check_ownership
from meles.engine.fs.pages import Pages
from meles.engine.keys_of_directory import open_directory_keys
from meles.engine.memory_budget import page_room
from meles.engine.memtable.memtable import Memtable
from meles.engine.options import Options
from meles.engine.run_job import JobDirs
from meles.engine.store import Store
from meles.engine.table.cache import BlockCache
from meles.engine.table.index_cache import IndexCache
from meles.engine.txn.oracle import Oracle

MODES = ("own", "read_only", "memory")
_MEMORY_HOME = "/dev/shm"  # noqa: S108 - a fresh private directory is made there


@dataclass
class Opening:
    """What the steps of opening build up. `unwind` runs only when a step fails."""

    path: str
    mode: str
    options: Options
    wait: float
    unwind: ExitStack
    private: bool = False  # a directory of our own making, removed on close
    directories: list[Directory] = field(default_factory=list)
    locks: list[DirectoryLock] = field(default_factory=list)
    recovering: recovery.Recovering | None = None
    active: Memtable | None = None
    store: Store | None = None
    engine: Engine | None = None
    control: object = None  # what the last step made of it

    @property
    def read_only(self) -> bool:
        return self.mode == "read_only"

    @property
    def files(self) -> recovery.Recovering:
        if self.recovering is None:
            raise InvariantError("the directory is not locked yet")
        return self.recovering

    @property
    def made_engine(self) -> Engine:
        if self.engine is None:
            raise InvariantError("there is no engine yet")
        return self.engine

    @property
    def made_store(self) -> Store:
        if self.store is None:
            raise InvariantError("there is no store yet")
        return self.store


def make_directories(opening: Opening) -> None:
    if opening.mode == "memory":
        home = _MEMORY_HOME if os.access(_MEMORY_HOME, os.W_OK) else None
        opening.path = tempfile.mkdtemp(prefix="meles-", dir=home)
        opening.private = True
        opening.unwind.callback(shutil.rmtree, opening.path, ignore_errors=True)
    value_dir = opening.options.value_dir
    for path in [opening.path] if value_dir is None else [opening.path, value_dir]:
        if opening.read_only:
            if not os.path.isdir(path):
                raise DirectoryMissingError(f"no directory {path}")
        else:
            for part in reversed(_missing(path)):
                opening.unwind.callback(_remove_if_empty, part)
            make_directory(path)
    opening.path = os.path.abspath(opening.path)


def _missing(path: str) -> list[str]:
    """The directory and its parents that are not there, deepest first."""
    found, path = [], os.path.abspath(path)
    while not os.path.isdir(path):
        found.append(path)
        path = os.path.dirname(path)
    return found


def _remove_if_empty(path: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(path)


def lock_directory(opening: Opening) -> None:
    _lock(opening, opening.path)
    tables = opening.directories[0]
    opening.recovering = recovery.Recovering(
        JobDirs(tables, tables), opening.options, opening.read_only, BlockCache(0), opening.unwind
    )


def lock_value_directory(opening: Opening) -> None:
    value_dir = opening.options.value_dir
    if value_dir is not None and not os.path.samefile(value_dir, opening.path):
        _lock(opening, os.path.abspath(value_dir))
        opening.files.dirs = JobDirs(*opening.directories)


def _lock(opening: Opening, path: str) -> None:
    directory = open_to_lock(path)
    opening.unwind.callback(directory.close)
    opening.directories.append(directory)
    if not (opening.read_only or opening.options.trust_directory):
        check_ownership(directory)
    if opening.options.bypass_lock_guard:
        return
    lock = DirectoryLock.acquire(directory, shared=opening.read_only, wait=opening.wait)
    opening.unwind.callback(lock.release)
    opening.locks.append(lock)


def open_keys(opening: Opening) -> None:
    """The data keys, before anything that may be sealed with them is read."""
    tables, options = opening.files.dirs.tables, opening.options
    had = REGISTRY in tables.names()
    if not had and not opening.read_only:
        opening.unwind.callback(tables.unlink, REGISTRY)
    keys = open_directory_keys(
        opening.files.dirs, options.encryption_key, options.encryption_key_rotation,
        read_only=opening.read_only,
    )  # fmt: skip
    for directory in opening.directories:
        directory.keys = keys


def open_manifest(opening: Opening) -> None:
    tables = opening.files.dirs.tables
    if not opening.read_only and MANIFEST not in tables.names():
        opening.unwind.callback(tables.unlink, MANIFEST)
    recovery.open_manifest(opening.files)


def check_codecs(opening: Opening) -> None:
    """Before anything is changed: a codec that is missing would stop every flush, or every read."""
    codecs = set()
    for _, table in opening.files.version.walk():
        if table.compression not in CODEC_IDS:
            path = opening.files.dirs.tables.join(file_name(Kind.TABLE, table.id))
            name = repr(table.compression)[:40]
            raise FormatVersionError(f"{path} has the codec {name}, which is not known here")
        codecs.add(table.compression)
    if not opening.read_only:
        codecs.add(opening.options.compression)
    for codec in sorted(codecs):
        require(codec)


def make_caches(opening: Opening) -> None:
    options = opening.options
    opening.files.cache = cache = BlockCache(options.block_cache_size)
    opening.files.indexes = IndexCache(options.index_cache_size)
    if options.memory_budget is not None:
        opening.files.pages = Pages(lambda: page_room(vars(options), cache.size))


def recover_values(opening: Opening) -> None:
    recovery.recover_values(opening.files)


def replay_logs(opening: Opening) -> None:
    recovery.replay_logs(opening.files)


def open_tables(opening: Opening) -> None:
    recovery.open_tables(opening.files)


def open_values(opening: Opening) -> None:
    recovery.open_values(opening.files)


def settle(opening: Opening) -> None:
    recovery.settle(opening.files)
    keys = opening.files.dirs.tables.keys
    mixed = isinstance(keys, OwnedKeys) and bool(keys.active) and keys.mixed
    if mixed and recovery.all_encrypted(opening.files):
        keys.refuse_plain_files()


def make_store(opening: Opening) -> None:
    files = opening.files
    opening.store = Store(
        files.dirs, opening.options, files.manifest, files.version,
        next_mem=files.next_mem, cache=files.cache, indexes=files.indexes, pages=files.pages,
    )  # fmt: skip
    opening.store.add_open_files(files.tables, files.values)


def make_active_memtable(opening: Opening) -> None:
    store = opening.made_store
    if opening.read_only:
        opening.active = Memtable(opening.files.next_mem, b"", None)
    else:
        log = store.new_log()
        opening.unwind.callback(log.discard)
        opening.active = Memtable.create(log, opening.options.memtable_size)
        opening.unwind.callback(opening.active.index.release)
    store.start(opening.active, opening.files.sealed)


def make_engine(opening: Opening) -> None:
    store = opening.made_store
    last = recovery.last_timestamp(opening.files)
    oracle = Oracle(last, managed=opening.options.managed)
    opening.engine = Engine(opening.options, store, oracle, None)


Step = tuple[str, Callable[[Opening], None]]

FILE_STEPS: list[Step] = [
    ("make directories", make_directories),
    ("lock directory", lock_directory),
    ("lock value directory", lock_value_directory),
    ("open keys", open_keys),
    ("open MANIFEST", open_manifest),
    ("check codecs", check_codecs),
    ("make caches", make_caches),
    ("recover value log", recover_values),
    ("replay logs", replay_logs),
    ("open tables", open_tables),
    ("open value log", open_values),
    ("settle", settle),
    ("make store", make_store),
    ("make active memtable", make_active_memtable),
    ("make engine", make_engine),
]
