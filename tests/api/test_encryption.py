"""Encryption at rest as its user meets it: keys that fit, keys that do not, and changing them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import meles
import pytest

OpenDB = Callable[..., meles.DB]
KEY, OTHER = bytes(range(32)), b"k" * 16
SMALL: dict[str, Any] = {
    "memtable_size": "64KiB", "base_table_size": "16KiB", "base_level_size": "64KiB",
    "block_size": 1024, "value_threshold": 500, "num_level_zero_tables": 2,
}  # fmt: skip


def everything(path: Path) -> dict[str, bytes]:
    """The directory byte for byte, but for who holds the lock."""
    found = {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}
    found.pop("LOCK", None)
    return found


def fill(db: meles.DB, count: int = 1500) -> dict[bytes, bytes]:
    """Enough for tables on several levels, a log and value-log files."""
    data = {b"key %05d" % n: b"value %d " % n * (80 if n % 9 == 0 else 3) for n in range(count)}
    for key, value in data.items():
        db.set(key, value)
    return data


def key_ids(db: meles.DB) -> tuple[set[int], set[int]]:
    """The data keys of the tables and of the value-log files."""
    values = db.stats().value_log.key_ids.values()
    return {table.key_id for table in db.tables()}, set(values)


@pytest.mark.parametrize("key", [KEY, KEY[:16], KEY[:24], KEY.hex(), bytearray(KEY)])
def test_a_key_of_any_length_and_form(open_db: OpenDB, key: bytes | str) -> None:
    with open_db(encryption_key=key) as db:
        db[b"k"] = b"v"
        db.flush()
    with open_db(encryption_key=key) as db:
        assert db[b"k"] == b"v"


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("workers", ["inline", "thread", "process"])
def test_everything_is_read_back(open_db: OpenDB, workers: str, compression: str) -> None:
    options = {**SMALL, "workers": workers, "compression": compression, "encryption_key": KEY}
    with open_db(**options) as db:
        data = fill(db)
        for key in list(data)[::3]:
            del db[key], data[key]
        db.drop_prefix(b"key 0099")
        data = {key: value for key, value in data.items() if not key.startswith(b"key 0099")}
        db.flush()
        db.flatten()
        db.gc(0.1)
        assert dict(db.items()) == data
        assert list(db.items(reverse=True)) == sorted(data.items(), reverse=True)
        assert db.get_many([*data, b"absent"]) == [*data.values(), None]
        assert db.verify(values=True).ok
        assert db.space().total_bytes > 0
        assert db.health().status == "ok"
        assert key_ids(db) == ({1}, {1})
        db[b"late"] = b"in the log"
    with open_db(**options, mode="read_only") as db:
        assert dict(db.items()) == {**data, b"late": b"in the log"}
        assert db.verify(values=True).ok


def test_memory_mode(open_db: OpenDB) -> None:
    with open_db(None, mode="memory", encryption_key=KEY, **SMALL) as db:
        data = fill(db, 300)
        assert dict(db.items()) == data


@pytest.mark.parametrize("given", [None, OTHER, KEY[:16], bytes(32)])
def test_another_key_is_refused_and_nothing_is_touched(
    open_db: OpenDB, tmp_path: Path, given: bytes | None
) -> None:
    with open_db(encryption_key=KEY, **SMALL) as db:
        fill(db, 300)
    before = everything(tmp_path / "db")
    for mode in ("own", "read_only"):
        with pytest.raises(meles.EncryptionKeyError) as caught:
            open_db(encryption_key=given, mode=mode)
        assert KEY.hex() not in str(caught.value)
        assert everything(tmp_path / "db") == before
    found = meles.doctor(tmp_path / "db", encryption_key=given)
    assert not found.ok
    assert "key" in found.problem
    assert everything(tmp_path / "db") == before


def test_a_key_for_what_is_not_encrypted_is_refused(open_db: OpenDB, tmp_path: Path) -> None:
    with open_db() as db:
        db[b"k"] = b"v"
    before = everything(tmp_path / "db")
    for mode in ("own", "read_only"):
        with pytest.raises(meles.EncryptionKeyError, match="rotate"):
            open_db(encryption_key=KEY, mode=mode)
    with pytest.raises(meles.EncryptionKeyError, match="not encrypted"):
        meles.rotate(tmp_path / "db", old_key=KEY, new_key=OTHER)
    assert everything(tmp_path / "db") == before
    with open_db() as db:
        assert db[b"k"] == b"v"


@pytest.mark.parametrize("key", [KEY, None])
def test_a_missing_registry_is_named_and_nothing_is_made_in_its_place(
    open_db: OpenDB, tmp_path: Path, key: bytes | None
) -> None:
    with open_db(encryption_key=KEY) as db:
        db[b"k"] = b"v"
    (tmp_path / "db" / "KEYREGISTRY").unlink()
    before = everything(tmp_path / "db")
    for mode in ("own", "read_only"):
        with pytest.raises(meles.EncryptionKeyError, match="KEYREGISTRY is missing") as caught:
            open_db(encryption_key=key, mode=mode)
        assert "copy" in caught.value.hint
    with pytest.raises(meles.EncryptionKeyError, match="KEYREGISTRY is missing"):
        meles.rotate(tmp_path / "db", old_key=key, new_key=OTHER)
    assert everything(tmp_path / "db") == before


def test_an_older_registry_is_told(open_db: OpenDB, tmp_path: Path) -> None:
    with open_db(encryption_key=KEY) as db:
        db[b"k"] = b"v"
    registry = tmp_path / "db" / "KEYREGISTRY"
    older = registry.read_bytes()
    meles.rotate(tmp_path / "db", old_key=KEY, new_key=OTHER)
    open_db(encryption_key=OTHER).close()
    registry.write_bytes(older)
    before = everything(tmp_path / "db")
    with pytest.raises(meles.EncryptionKeyError, match="does not hold") as caught:
        open_db(encryption_key=KEY)
    assert "older" in caught.value.hint
    assert everything(tmp_path / "db") == before


WITHOUT_LIBRARY = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "cryptography":
            raise ImportError(name)

sys.meta_path.insert(0, Missing())
import meles
path, mode = sys.argv[1:]
for act in (
    lambda: meles.open(path, mode=mode, encryption_key=bytes(range(32))),
    lambda: meles.rotate(path, old_key=bytes(range(32)), new_key=bytes(16)),
):
    try:
        act()
    except meles.ConfigError as error:
        print(error)
"""


def test_without_the_library_nothing_is_touched(open_db: OpenDB, tmp_path: Path) -> None:
    def tried(mode: str) -> str:
        command = [sys.executable, "-P", "-c", WITHOUT_LIBRARY, str(tmp_path / "db"), mode]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert tried("own").count("pip install 'meles[crypto]'") == 2
    assert list(tmp_path.iterdir()) == []
    with open_db(encryption_key=KEY) as db:
        db[b"k"] = b"v"
    before = everything(tmp_path / "db")
    for mode in ("own", "read_only"):
        assert tried(mode).count("'cryptography' is missing") == 2
        assert everything(tmp_path / "db") == before


def test_a_failed_first_opening_leaves_no_registry(open_db: OpenDB, tmp_path: Path) -> None:
    (tmp_path / "db").mkdir(mode=0o700)
    (tmp_path / "db" / "MANIFEST.new").mkdir()
    with pytest.raises(OSError, match=r"MANIFEST\.new"):
        open_db(encryption_key=KEY)
    assert [path.name for path in (tmp_path / "db").iterdir()] == ["MANIFEST.new"]


# -- keys that change ----------------------------------------------------------------------------


def test_rotate_gives_another_key(open_db: OpenDB, tmp_path: Path) -> None:
    with open_db(encryption_key=KEY, **SMALL) as db:
        data = fill(db, 300)
    done = meles.rotate(tmp_path / "db", old_key=KEY, new_key=OTHER.hex())
    assert done == meles.Rotation(done.path, encrypted=True, data_keys=2)
    with pytest.raises(meles.EncryptionKeyError):
        open_db(encryption_key=KEY)
    with open_db(encryption_key=OTHER, **SMALL) as db:
        assert dict(db.items()) == data
        assert db.verify(values=True).ok
        db[b"key 00000"] = db[b"key 00299"] = b"n" * 600  # around all that is there
        assert key_ids(db)[0] == {1}
        db.flush()
        db.flatten()
        assert key_ids(db) == ({2}, {1, 2})


def test_rotate_wants_the_old_key_and_a_closed_database(open_db: OpenDB, tmp_path: Path) -> None:
    with open_db(encryption_key=KEY) as db:
        db[b"k"] = b"v"
        with pytest.raises(meles.LockedError):
            meles.rotate(tmp_path / "db", old_key=KEY, new_key=OTHER)
    before = everything(tmp_path / "db")
    for old in (None, OTHER):
        with pytest.raises(meles.EncryptionKeyError):
            meles.rotate(tmp_path / "db", old_key=old, new_key=OTHER)
    for new in (b"short", "no hexadecimal"):
        with pytest.raises(meles.ConfigError, match="16, 24 or 32"):
            meles.rotate(tmp_path / "db", old_key=KEY, new_key=new)
    with pytest.raises(meles.DirectoryMissingError):
        meles.rotate(tmp_path, new_key=KEY)
    assert everything(tmp_path / "db") == before


def test_encrypting_what_is_there(open_db: OpenDB, tmp_path: Path) -> None:
    """File by file, as they are written anew; then a file without a seal is damage."""
    with open_db(**SMALL) as db:
        data = fill(db, 600)
        db.flush()
    meles.rotate(tmp_path / "db", new_key=KEY)
    plain = everything(tmp_path / "db")
    with open_db(encryption_key=KEY, **SMALL) as db:
        assert dict(db.items()) == data
        assert key_ids(db) == ({0}, {0})
        for key in list(data)[::2]:
            del db[key], data[key]
        db.flush()
        db.flatten()
        db.gc(0.01)
        assert key_ids(db) == ({1}, {1})
    with open_db(encryption_key=KEY, **SMALL) as db:
        assert dict(db.items()) == data
        assert db.verify(values=True).ok
    assert not [
        name for name, content in everything(tmp_path / "db").items() if b"key 0" in content
    ]
    (tmp_path / "db" / "MANIFEST").write_bytes(plain["MANIFEST"])
    with pytest.raises(meles.CorruptionError, match="not encrypted"):
        open_db(encryption_key=KEY)


def test_ending_encryption_has_to_be_asked_for(open_db: OpenDB, tmp_path: Path) -> None:
    with open_db(encryption_key=KEY, **SMALL) as db:
        data = fill(db, 300)
    before = everything(tmp_path / "db")
    with pytest.raises(meles.ConfigError, match="plaintext=True"):
        meles.rotate(tmp_path / "db", old_key=KEY)
    with pytest.raises(meles.ConfigError, match="contradict"):
        meles.rotate(tmp_path / "db", old_key=KEY, new_key=OTHER, plaintext=True)
    assert everything(tmp_path / "db") == before
    assert not meles.rotate(tmp_path / "db", old_key=KEY, plaintext=True).encrypted
    with pytest.raises(meles.EncryptionKeyError, match="no longer encrypted"):
        open_db(encryption_key=KEY)
    with open_db(**SMALL) as db:
        assert dict(db.items()) == data
        db[b"key 00000"] = db[b"key 00299"] = b"n" * 600  # around all that is there
        db.flush()
        db.flatten()
        assert key_ids(db) == ({0}, {0, 1})
        assert db.verify(values=True).ok
    open_db(path=tmp_path / "plain").close()
    with pytest.raises(meles.EncryptionKeyError, match="not encrypted"):
        meles.rotate(tmp_path / "plain", plaintext=True)


def test_a_data_key_is_replaced_when_it_is_old(open_db: OpenDB, clock: Any, tmp_path: Path) -> None:
    options = {
        **SMALL,
        "encryption_key": KEY,
        "encryption_key_rotation": 3600,
        "path": tmp_path / "e",
    }
    with open_db(**options) as db:
        data = fill(db, 300)
        db.flush()
        assert key_ids(db) == ({1}, {1})
        clock.turn(3601)
        data |= {b"later": b"l" * 600}
        db.set(b"later", b"l" * 600)
        db.flush()
        assert max(key_ids(db)[0]) == 2
        clock.turn(3601)
        db.set(b"last", b"l")
    with open_db(**options) as db:
        assert dict(db.items()) == {**data, b"last": b"l"}
        assert db.verify(values=True).ok


# -- the doctor ----------------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def lose_manifest(home: Path) -> None:
    (home / "MANIFEST").unlink()


def damage_table(home: Path) -> None:
    flip(sorted(home.glob("*.sst"))[0], 300)


def damage_header(home: Path) -> None:
    flip(sorted(home.glob("*.sst"))[0], 40)


def damage_values(home: Path) -> None:
    flip(sorted(home.glob("*.vlog"))[0], 300)


@pytest.mark.parametrize(
    ("harm", "loses"),
    [(lose_manifest, False), (damage_table, True), (damage_header, False), (damage_values, True)],
)
def test_the_doctor_repairs_with_the_key(
    open_db: OpenDB, tmp_path: Path, harm: Callable[[Path], None], loses: bool
) -> None:
    home = tmp_path / "db"
    with open_db(encryption_key=KEY, **SMALL) as db:
        data = fill(db, 400)
        db.flush()
    assert meles.doctor(home, encryption_key=KEY, **SMALL).ok
    harm(home)
    found = meles.doctor(home, encryption_key=KEY, fix=True, **SMALL)
    assert found.ok, found
    with open_db(encryption_key=KEY, **SMALL) as db:
        left = dict(db.items())
        assert left.items() <= data.items()
        assert (left == data) is not loses
        assert db.verify(values=True).ok
        for name in home.glob("*.sst"):
            assert b"key 0" not in name.read_bytes()


def test_the_doctor_says_that_a_registry_is_damaged(open_db: OpenDB, tmp_path: Path) -> None:
    with open_db(encryption_key=KEY) as db:
        db[b"k"] = b"v"
    flip(tmp_path / "db" / "KEYREGISTRY", 90)
    before = everything(tmp_path / "db")
    with pytest.raises(meles.CorruptionError, match="key registry"):
        open_db(encryption_key=KEY)
    found = meles.doctor(tmp_path / "db", encryption_key=KEY, fix=True)
    assert not found.ok
    assert [finding.file for finding in found.findings] == ["KEYREGISTRY"]
    assert everything(tmp_path / "db") == before
