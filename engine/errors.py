"""Every error Meles raises.

Runs in: supervisor and workers.
Invariants: (1) each public error derives from `Error` and, where a Python user would expect it,
from the built-in of the same meaning (`KeyError`, `ValueError`, `OSError`, `TimeoutError`); (2)
`.hint` is one sentence saying what to do; (3) no message carries key or value bytes.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BannedKeyError",
    "ClosedError",
    "ConfigError",
    "ConflictError",
    "CorruptionError",
    "DirectoryMissingError",
    "DiskFullError",
    "EncryptionKeyError",
    "Error",
    "ForkedHandleError",
    "FormatVersionError",
    "InvalidKeyError",
    "KeyNotFoundError",
    "LockedError",
    "PermissionsError",
    "ReadOnlyError",
    "StoreFailedError",
    "TransactionFinishedError",
    "TransactionTooBigError",
    "WorkerFailedError",
    "WriteStallError",
]


class Error(Exception):
    """Base of all errors of this package. `hint` says in one sentence what to do."""

    hint: str = "see the message"

    def __init__(self, message: str = "", *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if hint is not None:
            self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.message else self.hint

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied, or carried between processes of the host, an error keeps its fields."""
        fields = dict(self.__dict__)
        if isinstance(self, OSError):
            fields["errno"] = self.errno
        return _restored, (type(self), self.args, fields)


def _restored(cls: type[Error], args: tuple[Any, ...], fields: dict[str, Any]) -> Error:
    error = cls.__new__(cls)
    error.args = args
    for name, value in fields.items():
        setattr(error, name, value)
    return error


class KeyNotFoundError(Error, KeyError):
    """The key has no live value at the read timestamp."""

    hint = "use get() with a default, or test with `in`"


class InvalidKeyError(Error, ValueError):
    """A key no entry may have: empty, longer than 65,000 bytes, or reserved."""

    hint = "use a key of 1 to 65,000 bytes that does not start with `!meles!`"


class BannedKeyError(Error):
    """The key belongs to a banned namespace."""

    hint = (
        "this namespace was banned with ban_namespace(); its keys can be neither read nor written"
    )


class TransactionTooBigError(Error, ValueError):
    """The write would take the transaction over its limit; the transaction stays usable.

    `limit` and `size` are bytes: what is allowed, and what it would have been.
    """

    hint = "commit and go on in a new transaction, use write_batch(), or raise memtable_size"

    def __init__(self, message: str, *, limit: int, size: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.limit = limit
        self.size = size


class TransactionFinishedError(Error, ValueError):
    """The transaction was committed or discarded, or its iterator outlived it."""

    hint = "begin a new transaction"


class ConflictError(Error):
    """Another transaction committed into what this one had read. Nothing was written."""

    hint = "run the transaction again; db.transact() does so by itself"


class ReadOnlyError(Error):
    """A write on a read-only handle or transaction."""

    hint = "open the directory with mode='own', or use db.update()"


class ClosedError(Error, ValueError):
    """The database, or the object made from it, is closed."""

    hint = "open the database again"


class ForkedHandleError(ClosedError):
    """A handle opened before os.fork() was used in the child."""

    hint = "open the database in the process that uses it; the parent's handle is unharmed"


class LockedError(Error, OSError):
    """Another process owns the directory. `pid`, `command` and `since` (unix seconds) if known."""

    hint = "wait with open(wait=seconds), or stop the owner"

    def __init__(
        self,
        message: str,
        *,
        path: str,
        pid: int | None = None,
        command: str | None = None,
        since: float | None = None,
    ) -> None:
        super().__init__(message)
        self.path = path
        self.pid = pid
        self.command = command
        self.since = since


class DirectoryMissingError(Error, FileNotFoundError):
    """A read-only open found no database, or the directory of an open one left its path."""

    hint = "check the path, or open with mode='own' to create it"


class PermissionsError(Error, PermissionError):
    """The directory belongs to somebody else, or others may write to it."""

    hint = "give the directory to this user with mode 0700, or open with trust_directory=True"


class CorruptionError(Error):
    """Stored bytes do not check out. `path`, `offset` (bytes) and `kind` say where and in what."""

    hint = "keep a copy of the directory and run `meles doctor` on it"

    def __init__(
        self, message: str, *, path: str, offset: int, kind: str, hint: str | None = None
    ) -> None:
        super().__init__(f"{path} at byte {offset}: {message} [{kind}]", hint=hint)
        self.path = path
        self.offset = offset
        self.kind = kind


class FormatVersionError(Error):
    """A file was written by a newer version, or is not one of ours. It was left untouched."""

    hint = "open it with the version of meles that wrote it"


class EncryptionKeyError(Error):
    """The master key is missing, wrong or of the wrong length."""

    hint = "open with the encryption_key the directory was made with"


class ConfigError(Error, ValueError):
    """A bad option: the message names it, its value, what is allowed and where it came from."""

    hint = "correct the option"


class WriteStallError(Error, TimeoutError):
    """Writers outran flushing or compaction for longer than the limit, or no file can be opened
    for want of descriptors. Nothing was written.
    """

    hint = "write more slowly, give it more compactors, or see db.health()"


class DiskFullError(Error, OSError):
    """The file system has no room. Reads go on; writes work again when there is space."""

    hint = "free space on the file system"


class StoreFailedError(Error, OSError):
    """A write or fsync failed; this handle takes no more writes. `__cause__` is the first error."""

    hint = "repair the cause, then close and reopen the database"


class WorkerFailedError(Error):
    """A worker process failed a job. `kind`, `pid`, `exit`, `job` and `log_tail` say how."""

    hint = "the supervisor restarts workers by itself; see db.health()"

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        pid: int | None = None,
        exit: int | None = None,
        job: str | None = None,
        log_tail: str = "",
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.pid = pid
        self.exit = exit
        self.job = job
        self.log_tail = log_tail


class JobCancelledError(Error):
    """The job was told to stop; its outputs are removed. Internal: never reaches a caller."""

    hint = "run the job again"


class InvariantError(AssertionError):
    """A contradiction of our own. Caught only by the loop that logs it and stops writing."""
