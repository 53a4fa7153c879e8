"""Meles: a key-value storage engine. LSM tree and value log, snapshots and serializable
transactions, time to live; flushing, compaction and value-log collection run in processes of their
own.

    import meles

    with meles.open("data") as db:
        db.set(b"key", b"value")
        print(db.get(b"key"))

Importing this starts nothing, logs nothing and loads no engine code until `open` is called.

Runs in: the host process.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from meles.engine.errors import (
    BannedKeyError,
    ClosedError,
    ConfigError,
    ConflictError,
    CorruptionError,
    DirectoryMissingError,
    DiskFullError,
    EncryptionKeyError,
    Error,
    ForkedHandleError,
    FormatVersionError,
    InvalidKeyError,
    KeyNotFoundError,
    LockedError,
    PermissionsError,
    ReadOnlyError,
    StoreFailedError,
    TransactionFinishedError,
    TransactionTooBigError,
    WorkerFailedError,
    WriteStallError,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from datetime import timedelta

    from meles.engine.backup.restoring import Source
    from meles.engine.db import DB
    from meles.engine.options import Options
    from meles.engine.reports import (
        BackupReport,
        CloseReport,
        Diagnosis,
        Finding,
        GCReport,
        Health,
        RestoreReport,
        Rotation,
        Size,
        SpaceReport,
        Stage,
        Stats,
        VerifyReport,
    )
    from meles.engine.subscribe import Change, Subscription
    from meles.engine.txn.batch import WriteBatch
    from meles.engine.txn.cursor import Item
    from meles.engine.txn.merge import MergeOperator
    from meles.engine.txn.sequence import Sequence
    from meles.engine.txn.txn import Txn
    from meles.engine.worker_info import WorkerInfo

__version__ = "0.1.0"

logging.getLogger("meles").addHandler(logging.NullHandler())

# Names that need engine code, and where they live; looked up when first asked for.
_LAZY = {
    "DB": "meles.engine.db",
    "Options": "meles.engine.options",
    "BackupReport": "meles.engine.reports",
    "CloseReport": "meles.engine.reports",
    "Diagnosis": "meles.engine.reports",
    "Finding": "meles.engine.reports",
    "GCReport": "meles.engine.reports",
    "Health": "meles.engine.reports",
    "RestoreReport": "meles.engine.reports",
    "Rotation": "meles.engine.reports",
    "Size": "meles.engine.reports",
    "SpaceReport": "meles.engine.reports",
    "Stage": "meles.engine.reports",
    "Stats": "meles.engine.reports",
    "VerifyReport": "meles.engine.reports",
    "WorkerInfo": "meles.engine.worker_info",
    "Change": "meles.engine.subscribe",
    "Item": "meles.engine.txn.cursor",
    "MergeOperator": "meles.engine.txn.merge",
    "Sequence": "meles.engine.txn.sequence",
    "Subscription": "meles.engine.subscribe",
    "Txn": "meles.engine.txn.txn",
    "WriteBatch": "meles.engine.txn.batch",
}


def open(
    path: str | os.PathLike[str] | None,
    *,
    mode: str = "own",
    config: str | os.PathLike[str] | None = None,
    wait: float | timedelta = 0.0,
    **options: Any,
) -> DB:
    """Open a database directory and return its handle.

    `mode="own"` becomes the directory's supervisor (made 0700 if missing) and starts its workers;
    `"read_only"` starts and writes nothing; `"memory"` uses a private directory, removed on close
    (`path` is None). `config` names a TOML file with a table `[meles]`; `MELES_<OPTION>` variables
    override it and keyword options override both. `wait` is how many seconds to wait for the lock.

    Raises `LockedError`, `ConfigError`, `CorruptionError`, `FormatVersionError`,
    `DirectoryMissingError` (reading where there is no database), `OSError`; whatever it raises,
    nothing is left behind.
    """
    from meles.supervisor import open_db

    return open_db(path, mode=mode, config=config, wait=wait, options=options)


def doctor(
    path: str | os.PathLike[str],
    *,
    fix: bool = False,
    config: str | os.PathLike[str] | None = None,
    wait: float | timedelta = 0.0,
    **options: Any,
) -> Diagnosis:
    """Say why a directory does not open, or does not check out, and what would help.

    Reads every byte. Without `fix` nothing is changed. With it, damaged files are set aside (they
    get the suffix `.aside`; nothing is deleted) and the rest is made to open; each finding says
    what that loses. Raises `ConfigError` for a bad option; what is wrong with the directory is in
    the answer.
    """
    from meles.engine.arguments import directory_path, seconds
    from meles.engine.doctor.doctor import diagnose
    from meles.engine.options import load_options
    from meles.supervisor import open_db

    where = directory_path(path, "path", make=False)
    loaded = load_options(options, config=config)
    calm = {**options, "workers": "inline", "num_compactors": 0, "gc": False}

    def opener(mode: str) -> DB:
        return open_db(where, mode=mode, config=config, wait=wait, options=calm)

    return diagnose(where, loaded, opener, fix=fix, wait=seconds(wait, "wait"))


def rotate(
    path: str | os.PathLike[str],
    *,
    old_key: bytes | str | None = None,
    new_key: bytes | str | None = None,
    plaintext: bool = False,
    wait: float | timedelta = 0.0,
) -> Rotation:
    """Give a closed database another master key: from now on it opens with `new_key` alone.

    Keys are 16, 24 or 32 bytes, or their hexadecimal text, as the option `encryption_key`. Without
    `old_key` a database that is not encrypted becomes so: what is written from now on is encrypted,
    what is there already when it is rewritten. `plaintext=True`, without a `new_key`, ends
    encryption in the same way; the keys of the files that are still encrypted are then in the
    directory, for anybody to read.

    Nothing but the key registry is replaced, all at once. Raises `EncryptionKeyError` (the old key
    is not the one), `ConfigError`, `LockedError`, `DirectoryMissingError`.
    """
    from meles.engine.arguments import directory_path, seconds
    from meles.engine.options import load_options
    from meles.engine.rotation import rotate_keys

    where = directory_path(path, "path", make=False)
    old, new = (
        load_options({"encryption_key": key}, environ={}).encryption_key
        for key in (old_key, new_key)
    )
    return rotate_keys(where, old, new, plaintext=plaintext, wait=seconds(wait, "wait"))


def restore(
    sources: Source | Iterable[Source],
    path: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | None = None,
    **options: Any,
) -> RestoreReport:
    """Make a new database of a backup, or of a full one with its increments in order.

    `sources` are paths or files of bytes, one or several, made by `DB.backup`. `path` is new or an
    empty directory, in a directory that is there; it is there whole when this returns, and until
    then nothing is: everything is made in `.NAME.restoring-...` beside it. Versions are those of
    the source, so increments made later of either follow. `config` and `options` say how its files
    are made, as for `open`: `compression`, `value_threshold`, `encryption_key` among others.

    Nothing in a stream is trusted: what does not check out is a `CorruptionError` that names the
    place. `ConfigError` when the streams do not follow one another or the directory is not empty,
    `FormatVersionError`, `DirectoryMissingError`, `DiskFullError`, `OSError`.
    """
    from meles.engine.arguments import directory_path
    from meles.engine.backup.restoring import restore_streams
    from meles.engine.options import load_options

    where = directory_path(path, "path", make=False)
    if not where:
        raise ConfigError("path=None: restoring takes the path of a directory")
    return restore_streams(sources, where, load_options(options, config=config))


def check_backup(sources: Source | Iterable[Source]) -> RestoreReport:
    """Read a backup, or a full one with its increments in order, as `restore` does, and make
    nothing of it. Raises what that would; the report's `path` is None.
    """
    from meles.engine.backup.restoring import check_streams

    return check_streams(sources)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'meles' has no attribute {name!r}")


__all__ = [
    "BackupReport",
    "BannedKeyError",
    "Change",
    "CloseReport",
    "ClosedError",
    "ConfigError",
    "ConflictError",
    "CorruptionError",
    "DB",
    "Diagnosis",
    "DirectoryMissingError",
    "DiskFullError",
    "EncryptionKeyError",
    "Error",
    "Finding",
    "ForkedHandleError",
    "FormatVersionError",
    "GCReport",
    "Health",
    "InvalidKeyError",
    "Item",
    "KeyNotFoundError",
    "LockedError",
    "MergeOperator",
    "Options",
    "PermissionsError",
    "ReadOnlyError",
    "RestoreReport",
    "Rotation",
    "Sequence",
    "Size",
    "SpaceReport",
    "Stage",
    "Stats",
    "StoreFailedError",
    "Subscription",
    "TransactionFinishedError",
    "TransactionTooBigError",
    "Txn",
    "VerifyReport",
    "WorkerFailedError",
    "WorkerInfo",
    "WriteBatch",
    "WriteStallError",
    "check_backup",
    "doctor",
    "open",
    "restore",
    "rotate",
]
