"""Why nothing is written any more: the first write or fsync that failed.

Runs in: supervisor.
The kernel forgets the error of a failed fsync, so trying again would lie: every later write gets
the first error, until the database is opened anew.
"""

from __future__ import annotations

from meles.engine.errors import StoreFailedError, WriteStallError


class WriteFailure:
    """Makes the `StoreFailedError` every later write gets, the first error kept as its cause."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause

    def __call__(self) -> StoreFailedError:
        error = StoreFailedError(f"an earlier write failed: {self.cause}")
        error.__cause__ = self.cause
        return error


def descriptor_shortage(error: Exception) -> WriteStallError:
    """For a write that found no descriptor: it heals."""
    return WriteStallError(
        f"a file cannot be opened: {error}; nothing was written",
        hint="close descriptors or raise their limit (ulimit -n), then write again",
    )
