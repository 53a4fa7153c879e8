"""KEYREGISTRY on a disk: replaced whole or not at all, and keys that grow old."""

from __future__ import annotations

import pytest
from fault_fs import FailNth, FaultDisk
from meles.engine.codec.header import MAGIC_TABLE, FileHeader
from meles.engine.crypt import registry
from meles.engine.crypt.keys import DataKey, KeyRing, cipher_for, new_header
from meles.engine.crypt.registry import OwnedKeys, read_registry, write_registry
from meles.engine.errors import CorruptionError, EncryptionKeyError
from meles.engine.fs.files import Directory, open_directory

MASTER, OTHER = bytes(range(32)), bytes(16)


def ring(*ids: int) -> KeyRing:
    return KeyRing([DataKey(key_id, 1000.0, bytes([key_id]) * 32) for key_id in ids], ids[-1])


def test_it_is_read_back(directory: Directory) -> None:
    assert read_registry(directory, MASTER) is None
    write_registry(directory, ring(1, 2), MASTER)
    found = read_registry(directory, MASTER)
    assert found is not None
    assert (found.keys, found.active, found.mixed) == (ring(1, 2).keys, 2, False)
    with pytest.raises(EncryptionKeyError, match="not the key"):
        read_registry(directory, OTHER)
    with pytest.raises(EncryptionKeyError, match="no key was given"):
        read_registry(directory, None)


def test_in_the_clear_it_opens_without_a_key_and_with_none(directory: Directory) -> None:
    write_registry(directory, KeyRing(ring(1).keys.values(), 0, mixed=True), None)
    found = read_registry(directory, None)
    assert found is not None
    assert (found.active, found.current()) == (0, 0)
    with pytest.raises(EncryptionKeyError, match="no longer encrypted"):
        read_registry(directory, MASTER)


def test_whatever_call_fails_the_old_one_or_the_new_one_is_there(directory: Directory) -> None:
    write_registry(directory, ring(1), MASTER)
    failed = 0
    for nth in range(1, 30):
        with FaultDisk(remember=False).installed() as disk, open_directory(directory.path) as there:
            disk.plan = plan = FailNth(nth, 5)
            try:
                write_registry(there, ring(1, 2), OTHER)
            except OSError:
                failed += 1
            disk.plan = None
            del plan
        try:
            assert read_registry(directory, MASTER).keys == ring(1).keys  # type: ignore[union-attr]
        except EncryptionKeyError:
            assert read_registry(directory, OTHER).keys == ring(1, 2).keys  # type: ignore[union-attr]
        write_registry(directory, ring(1), MASTER)
    assert failed >= 4


def owned(directory: Directory, age: float, monkeypatch: pytest.MonkeyPatch) -> OwnedKeys:
    write_registry(directory, ring(1), MASTER)
    monkeypatch.setattr(registry, "unix_seconds", lambda: 1000.0 + age)
    return OwnedKeys(ring(1), directory, MASTER, 60.0)


def test_a_key_is_used_for_its_period(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = owned(directory, 59.9, monkeypatch)
    before = directory.read("KEYREGISTRY")
    assert keys.current() == 1
    assert directory.read("KEYREGISTRY") == before
    keys = owned(directory, 60.0, monkeypatch)
    assert keys.current() == keys.current() == 2
    found = read_registry(directory, MASTER)
    assert found is not None
    assert (found.keys, found.active) == (keys.keys, 2)
    assert KeyRing.unpack(keys.pack()).active == 2


def test_a_registry_that_cannot_be_written_leaves_the_key_in_use(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = owned(directory, 60.0, monkeypatch)

    def full(*_: object) -> None:
        raise OSError(28, "full")

    with monkeypatch.context() as patched:
        patched.setattr(registry, "write_registry", full)
        assert keys.current() == 1
    assert keys.current() == 2


def test_a_file_is_opened_with_the_key_its_header_names() -> None:
    keys = ring(1, 2)
    header, sealing = new_header(keys, MAGIC_TABLE, 9)
    assert header.key_id == 2
    assert sealing is not None
    opening = cipher_for(ring(1, 2, 3), header, "x")
    assert opening is not None
    assert opening.open_again(sealing.seal_again(b"d", 5, 1), 5, 1) == b"d"  # type: ignore[arg-type]
    assert new_header(keys, MAGIC_TABLE, 9)[0].salt != header.salt
    with pytest.raises(EncryptionKeyError, match="does not hold"):
        cipher_for(ring(1), header, "x")
    with pytest.raises(EncryptionKeyError, match="is missing"):
        cipher_for(None, header, "x")


def test_a_file_without_a_seal_is_damage_where_all_have_one() -> None:
    header = FileHeader(MAGIC_TABLE, 9)
    with pytest.raises(CorruptionError, match="not encrypted"):
        cipher_for(ring(1), header, "x")
    assert cipher_for(KeyRing(ring(1).keys.values(), 1, mixed=True), header, "x") is None
    assert cipher_for(KeyRing(ring(1).keys.values(), 0), header, "x") is None
    assert cipher_for(None, header, "x") is None
