"""Errors: what a Python user would catch them as, what they say, and that copies keep it."""

from __future__ import annotations

import copy
import errno
import pickle

import pytest
from meles.engine import errors
from meles.engine.errors import (
    ClosedError,
    CorruptionError,
    DirectoryMissingError,
    DiskFullError,
    Error,
    ForkedHandleError,
    InvariantError,
    KeyNotFoundError,
    LockedError,
    TransactionTooBigError,
    WorkerFailedError,
)

EXAMPLES: dict[str, Error] = {
    "CorruptionError": CorruptionError("bad block", path="db/000007.sst", offset=64, kind="block"),
    "LockedError": LockedError("in use", path="db", pid=7, command="serve", since=1.5),
    "TransactionTooBigError": TransactionTooBigError("too big", limit=10, size=11),
    "WorkerFailedError": WorkerFailedError(
        "died", kind="flusher", pid=7, exit=-9, job="flush", log_tail="x"
    ),
}
PUBLIC = [EXAMPLES.get(name) or getattr(errors, name)("what happened") for name in errors.__all__]
BUILT_INS = {
    "KeyNotFoundError": KeyError,
    "InvalidKeyError": ValueError,
    "TransactionTooBigError": ValueError,
    "TransactionFinishedError": ValueError,
    "ClosedError": ValueError,
    "ForkedHandleError": ValueError,
    "ConfigError": ValueError,
    "LockedError": OSError,
    "DirectoryMissingError": FileNotFoundError,
    "PermissionsError": PermissionError,
    "DiskFullError": OSError,
    "StoreFailedError": OSError,
    "WriteStallError": TimeoutError,
}
each = pytest.mark.parametrize("error", PUBLIC, ids=lambda error: type(error).__name__)


def test_all_that_is_public_is_listed_in_order() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type)
        and issubclass(value, Error)
        and value.__module__ == errors.__name__
    }
    assert set(errors.__all__) == defined - {"JobCancelledError"}
    assert errors.__all__ == sorted(errors.__all__)


@each
def test_is_caught_as_ours_and_as_the_built_in_of_the_same_meaning(error: Error) -> None:
    assert isinstance(error, Error)
    ours = BUILT_INS.get(type(error).__name__)
    built_in = (KeyError, ValueError, OSError, TimeoutError, AssertionError)
    assert isinstance(error, ours) if ours else not isinstance(error, built_in)


@each
def test_says_what_happened_and_what_to_do(error: Error) -> None:
    assert error.message
    assert str(error) == f"{error.message} ({error.hint})"
    assert error.hint[0].islower() or error.hint[0] == "`"
    assert not error.hint.endswith(".")
    assert "\n" not in error.hint


def test_without_a_message_the_hint_speaks() -> None:
    assert str(ClosedError()) == ClosedError.hint
    assert str(KeyNotFoundError()) == KeyNotFoundError.hint


def test_a_hint_may_be_more_to_the_point() -> None:
    error = Error("so it is", hint="do that")
    assert str(error) == "so it is (do that)"
    assert Error.hint != "do that"


def test_fields_are_kept() -> None:
    corrupt = EXAMPLES["CorruptionError"]
    assert isinstance(corrupt, CorruptionError)
    assert (corrupt.path, corrupt.offset, corrupt.kind) == ("db/000007.sst", 64, "block")
    assert corrupt.message == "db/000007.sst at byte 64: bad block [block]"
    locked = EXAMPLES["LockedError"]
    assert isinstance(locked, LockedError)
    assert (locked.path, locked.pid, locked.command, locked.since) == ("db", 7, "serve", 1.5)
    big = EXAMPLES["TransactionTooBigError"]
    assert isinstance(big, TransactionTooBigError)
    assert (big.limit, big.size) == (10, 11)
    failed = EXAMPLES["WorkerFailedError"]
    assert isinstance(failed, WorkerFailedError)
    found = (failed.kind, failed.pid, failed.exit, failed.job, failed.log_tail)
    assert found == ("flusher", 7, -9, "flush", "x")


def test_a_forked_handle_is_a_closed_one() -> None:
    assert issubclass(ForkedHandleError, ClosedError)


def test_a_contradiction_of_our_own_is_not_caught_as_an_error() -> None:
    assert not issubclass(InvariantError, Error)
    assert issubclass(InvariantError, AssertionError)


@pytest.mark.parametrize("clone", [copy.copy, lambda e: pickle.loads(pickle.dumps(e))])
@each
def test_a_copy_keeps_everything(error: Error, clone: object) -> None:
    """Hosts carry errors between their own processes, as `concurrent.futures` does."""
    found = clone(error)  # type: ignore[operator]
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert found.args == error.args
    assert vars(found) == vars(error)


def test_a_copy_keeps_the_error_number() -> None:
    full = DiskFullError("full", hint="elsewhere")
    full.errno = errno.ENOSPC
    found = copy.copy(full)
    assert (found.errno, found.hint) == (errno.ENOSPC, "elsewhere")
    assert copy.copy(DirectoryMissingError("none")).errno is None
