"""Every exception class of the contract: its bases, its fields, its hint."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import meles
import pytest

OpenDB = Callable[..., meles.DB]

BASES: dict[str, tuple[type[BaseException], ...]] = {
    "Error": (Exception,),
    "KeyNotFoundError": (KeyError,),
    "InvalidKeyError": (ValueError,),
    "BannedKeyError": (),
    "TransactionTooBigError": (ValueError,),
    "TransactionFinishedError": (ValueError,),
    "ConflictError": (),
    "ReadOnlyError": (),
    "ClosedError": (ValueError,),
    "LockedError": (OSError,),
    "CorruptionError": (),
    "FormatVersionError": (),
    "EncryptionKeyError": (),
    "ConfigError": (ValueError,),
    "WriteStallError": (TimeoutError,),
    "DiskFullError": (OSError,),
    "StoreFailedError": (OSError,),
    "WorkerFailedError": (),
    "ForkedHandleError": (),
}
FIELDS: dict[str, dict[str, Any]] = {
    "TransactionTooBigError": {"limit": 5, "size": 6},
    "LockedError": {"path": "/db", "pid": 7, "command": "serve", "since": 1.5},
    "CorruptionError": {"path": "/db/1.sst", "offset": 64, "kind": "block"},
    "WorkerFailedError": {"kind": "flusher", "pid": 7, "exit": -9, "job": "flush", "log_tail": "."},
}


def example(name: str) -> meles.Error:
    made: meles.Error = getattr(meles, name)("what happened", **FIELDS.get(name, {}))
    return made


@pytest.mark.parametrize("name", BASES)
def test_every_error_has_its_bases_its_fields_and_a_hint(name: str) -> None:
    error = example(name)
    assert isinstance(error, meles.Error)
    for base in BASES[name]:
        assert isinstance(error, base)
    for field, value in FIELDS.get(name, {}).items():
        assert getattr(error, field) == value
    assert isinstance(error.hint, str)
    assert len(error.hint) > 5
    assert "\n" not in error.hint
    assert error.hint in str(error)
    assert "what happened" in str(error)
    assert (inspect.getdoc(type(error)) or "") != ""


def test_nothing_else_is_an_error_of_ours_unless_it_derives_from_one() -> None:
    others = {
        name
        for name in meles.__all__
        if isinstance(getattr(meles, name), type)
        and issubclass(getattr(meles, name), BaseException)
    } - set(BASES)
    for name in others:
        assert issubclass(getattr(meles, name), meles.Error), name


def test_the_only_retryable_error_is_the_conflict() -> None:
    assert not issubclass(meles.ConflictError, OSError | ValueError)


def test_raised_errors_have_hints_and_no_key_or_value_in_them(open_db: OpenDB) -> None:
    db = open_db(memtable_size="64KiB", value_log_file_size="1MiB", namespace_offset=0)
    secret = b"SECRET--name"
    db.ban_namespace(int.from_bytes(secret[:8], "big"))
    txn = db.update()
    txn.get(b"k")
    db[b"k"] = b"v"
    txn[b"l"] = b"SECRET"
    failing: list[Callable[[], Any]] = [
        lambda: db[b"absent-SECRET"],
        lambda: db.set(b"SECRET" * 20_000, b""),
        lambda: db.set(b"!meles!SECRET", b""),
        lambda: db.get(secret),
        lambda: db.set(b"k", b"SECRET" * 200_000),
        txn.commit,
        txn.commit,
        lambda: db.gc(5),
        lambda: db.update(at=1),
    ]
    for fail in failing:
        with pytest.raises(meles.Error) as caught:
            fail()
        assert caught.value.hint
        assert "SECRET" not in str(caught.value)
        assert "SECRET" not in repr(caught.value)


def test_a_key_error_shows_its_message_not_its_repr(db: meles.DB) -> None:
    with pytest.raises(meles.KeyNotFoundError) as caught:
        db[b"absent"]
    assert str(caught.value).startswith("no such key")
