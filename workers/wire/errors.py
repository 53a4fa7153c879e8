"""Errors of the wire, and how a job's failure crosses it.

Runs in: supervisor and workers.
Invariants: (1) an exception a caller may have to tell apart arrives as the same type, with the
remote traceback as its `__cause__`; (2) any other arrives as `WorkerFailedError`; (3) texts are cut
to a bound, so a failure always fits a frame.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from meles.engine.errors import (
    CorruptionError,
    DiskFullError,
    EncryptionKeyError,
    Error,
    FormatVersionError,
    InvariantError,
    JobCancelledError,
    StoreFailedError,
    WorkerFailedError,
)

MAX_MESSAGE: Final = 4096  # characters; ours are one line, a library's may quote anything
MAX_TRACEBACK: Final = 16_384  # characters; the end is kept, where the failure is


class ProtocolError(Error):
    """Base of the two below; never raised itself."""


class LocalProtocolError(ProtocolError):
    """We were about to say what the protocol does not allow, such as a message beyond the limit."""

    hint = "this is a defect of this package, or a job too large for one message"


class RemoteProtocolError(ProtocolError):
    """The other side sent what the protocol does not allow. It is not to be trusted any more."""

    hint = "the supervisor replaces the worker by itself"


class RemoteTracebackError(Error):
    """The text of a traceback in a worker; the `__cause__` of what was rebuilt from it."""

    hint = "the traceback is the worker's"

    def __str__(self) -> str:
        return f"in the worker:\n{self.message}"


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception as plain data.

    `path`, `offset` and `damage` are those of a CorruptionError, `errno` that of an OSError.
    """

    kind: str
    message: str
    hint: str | None = None
    traceback: str = ""
    path: str | None = None
    offset: int | None = None
    damage: str | None = None
    errno: int | None = None


def _corruption(failure: Failure) -> Exception:
    path, offset, damage = failure.path or "", failure.offset or 0, failure.damage or "unknown"
    message = failure.message.removeprefix(f"{path} at byte {offset}: ")
    message = message.removesuffix(f" [{damage}]")
    return CorruptionError(message, path=path, offset=offset, kind=damage, hint=failure.hint)


def _of_ours(cls: type[Error]) -> Callable[[Failure], Exception]:
    def build(failure: Failure) -> Exception:
        error = cls(failure.message, hint=failure.hint)
        if isinstance(error, OSError):
            error.errno = failure.errno
        return error

    return build


# Looked up by the exception's own class, then its bases in order.
_REBUILD: Final[dict[str, Callable[[Failure], Exception]]] = {
    "CorruptionError": _corruption,
    "DiskFullError": _of_ours(DiskFullError),
    "EncryptionKeyError": _of_ours(EncryptionKeyError),
    "FormatVersionError": _of_ours(FormatVersionError),
    "JobCancelledError": _of_ours(JobCancelledError),
    "StoreFailedError": _of_ours(StoreFailedError),
    "InvariantError": lambda failure: InvariantError(failure.message),
    "MemoryError": lambda failure: MemoryError(failure.message),
    # With two arguments OSError becomes the subclass of that errno.
    "OSError": lambda failure: OSError(failure.errno or 0, failure.message),
}


def describe(error: Exception) -> Failure:
    """An exception as plain data, its texts cut to their bounds."""
    names = [cls.__name__ for cls in type(error).__mro__]
    kind = next((name for name in names if name in _REBUILD), names[0])
    message = getattr(error, "message", None)
    if message is None and isinstance(error, OSError):
        message = error.strerror
        if message is not None and error.filename is not None:
            message = f"{message}: {error.filename!r}"
    if message is None:
        message = str(error)
    text = "".join(traceback.format_exception(error))
    corrupt = error if isinstance(error, CorruptionError) else None
    number = error.errno if isinstance(error, OSError) else None
    hint = error.hint if isinstance(error, Error) else None
    return Failure(
        kind=kind,
        message=str(message)[:MAX_MESSAGE],
        hint=hint[:MAX_MESSAGE] if hint is not None else None,
        traceback=text[-MAX_TRACEBACK:],
        path=corrupt.path if corrupt is not None else None,
        offset=corrupt.offset if corrupt is not None else None,
        damage=corrupt.kind if corrupt is not None else None,
        errno=number,
    )


def rebuild(failure: Failure, *, worker: str, pid: int | None, job: str) -> Exception:
    """The exception a failure stands for; the rest goes into a `WorkerFailedError`."""
    build = _REBUILD.get(failure.kind)
    error: Exception
    if build is not None:
        error = build(failure)
    else:
        message = f"{job} failed: {failure.kind}: {failure.message}"
        error = WorkerFailedError(message, kind=worker, pid=pid, job=job)
    if failure.traceback:
        error.__cause__ = RemoteTracebackError(failure.traceback)
    return error


def as_typed(error: Exception, *, worker: str, job: str) -> Exception:
    """What `rebuild(describe(error))` gives, but the error itself where it may pass as it is.

    For jobs that ran in this process: they fail with the same types as those that did not.
    """
    if any(cls.__name__ in _REBUILD for cls in type(error).__mro__):
        return error
    message = f"{job} failed: {type(error).__name__}: {error}"
    failed = WorkerFailedError(message[:MAX_MESSAGE], kind=worker, job=job)
    failed.__cause__ = error
    return failed
