"""Why nothing is written: the first write or fsync that failed, or what holds writes for a while.

Runs in: supervisor.
The kernel forgets the error of a failed fsync, so trying again would lie: every later write gets
the first error, until the database is opened anew.
"""

from __future__ import annotations

from collections.abc import Callable

from meles.engine.errors import Error, StoreFailedError, WriteStallError


class WriteFailure:
    """Makes the `StoreFailedError` every later write gets, the first error kept as its cause."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause

    def __call__(self) -> StoreFailedError:
        error = StoreFailedError(f"an earlier write failed: {self.cause}")
        error.__cause__ = self.cause
        return error


class Hold:
    """Makes the error of each write as long as `lasts()`."""

    def __init__(self, why: Callable[[], Error], lasts: Callable[[], object]) -> None:
        self.why = why
        self.lasts = lasts

    def __call__(self) -> Error:
        return self.why()


def descriptor_shortage(error: Exception) -> WriteStallError:
    """For a write that found no descriptor: it heals."""
    return WriteStallError(
        f"a file cannot be opened: {error}; nothing was written",
        hint="close descriptors or raise their limit (ulimit -n), then write again",
    )
