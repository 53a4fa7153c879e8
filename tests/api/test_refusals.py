"""What does not go together is refused with an error that names what to change, before anything is
touched: a directory stays byte for byte as it was, and one that was not there is not made.

Keys and registries that do not fit are in `test_encryption.py`, codecs that are not installed in
`test_opening.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import meles
import pytest
from meles.engine.codec.header import HEADER_BYTES
from meles.engine.table.layout import BLOCK_HEAD
from sealed_files import SealedManifest, SealedTable

OpenDB = Callable[..., meles.DB]
KEY = bytes(range(32))


def everything(path: Path) -> dict[str, tuple[bytes, int]]:
    """What is there, byte for byte, `LOCK` included, and when it was written."""
    return {
        str(f.relative_to(path)): (f.read_bytes() if f.is_file() else b"", f.stat().st_mtime_ns)
        for f in [path, *path.rglob("*")]
    }


def without_lock(path: Path) -> dict[str, bytes]:
    """Byte for byte, but for who has it locked: that stays until the next one."""
    return {f.name: f.read_bytes() for f in path.iterdir() if f.name != "LOCK"}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture
def filled(open_db: OpenDB, tmp_path: Path) -> Path:
    """A directory with a table, a value-log file and a log."""
    with open_db(compression="lz4") as db:
        db[b"k"] = b"v" * 500
        db[b"large"] = b"v" * 5000
        db.flush()
        db[b"late"] = b"v"
    return tmp_path / "db"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"block_cache_size": 1}, "block_cache_size=1 (from keyword): allowed is 0, or at least "
         "16,384 bytes, for a block"),
        ({"block_cache_size": "1MiB", "block_size": "512KiB"}, "block_cache_size=1048576 "
         "(from keyword): allowed is 0, or at least 2,097,152 bytes, for a block"),
        ({"index_cache_size": 1000}, "index_cache_size=1000 (from keyword): allowed is 0, or at "
         "least 200,704 bytes, for a table's index"),
        ({"memory_budget": "2MiB"}, "memory_budget=2097152 (from keyword): allowed is nothing, or "
         "at least "),
        ({"memory_budget": "64MiB", "block_cache_size": "64MiB"}, "67,108,864 for the "
         "block_cache_size given"),
        ({"compression": "brotli"}, "compression='brotli' (from keyword): allowed is one of "
         "'none', 'snappy', 'lz4', 'zstd'"),
        *(
            ({"encryption_key": key}, "encryption_key=<hidden> (from keyword): allowed is 16, 24 "
             "or 32 bytes (in a text: hexadecimal)")
            for key in (bytes(15), bytes(33), "00" * 17, "no hexadecimal", 16, [0] * 16, True)
        ),
    ],
)  # fmt: skip
def test_options_that_cannot_be(
    open_db: OpenDB, tmp_path: Path, filled: Path, options: dict[str, Any], said: str
) -> None:
    before = everything(tmp_path)
    for mode in ("own", "read_only"):
        for path in (filled, tmp_path / "absent"):
            with pytest.raises(meles.ConfigError) as caught:
                open_db(path=path, mode=mode, **options)
            assert said in str(caught.value)
            assert str(caught.value).startswith("option ")
            assert everything(tmp_path) == before


@pytest.mark.parametrize("key", [bytes(15), "00" * 17, 16, [0] * 16])
@pytest.mark.parametrize("which", ["old_key", "new_key"])
def test_keys_that_cannot_be_rotated(tmp_path: Path, filled: Path, which: str, key: Any) -> None:
    before = everything(tmp_path)
    given = {"new_key": KEY, which: key}
    with pytest.raises(meles.ConfigError, match=r"encryption_key=<hidden>.* 16, 24 or 32 bytes"):
        meles.rotate(filled, **given)
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("made_with", "given", "said", "hint"),
    [
        (KEY, None, "this directory is encrypted, and no key was given",
         "open with the encryption_key the directory was made with"),
        (KEY, bytes(16), "this is not the key the directory was made with",
         "open with the encryption_key the directory was made with"),
        (None, KEY, "is not encrypted, and a key was given",
         "open it without encryption_key, or encrypt it with `meles rotate`"),
    ],
    ids=["none", "another", "needless"],
)  # fmt: skip
def test_keys_that_do_not_fit(
    open_db: OpenDB, tmp_path: Path, made_with: Any, given: Any, said: str, hint: str
) -> None:
    with open_db(encryption_key=made_with) as db:
        db[b"k"] = b"v" * 5000
        db.flush()
        db[b"late"] = b"v"
    before = without_lock(tmp_path / "db")
    for mode in ("own", "read_only"):
        with pytest.raises(meles.EncryptionKeyError) as caught:
            open_db(encryption_key=given, mode=mode)
        assert said in caught.value.message
        assert str(tmp_path / "db") in caught.value.message
        assert caught.value.hint == hint
        assert without_lock(tmp_path / "db") == before


def test_a_table_of_a_codec_that_is_not_known(open_db: OpenDB, filled: Path) -> None:
    """As a newer version may make them: what to change is the version, not an option."""
    manifest = SealedManifest(filled / "MANIFEST")
    changed = 0
    for offset, length in manifest.parts:
        part = manifest.data[offset : offset + length]
        if b"\xa3lz4" in part:
            manifest.data[offset : offset + length] = part.replace(b"\xa3lz4", b"\xa3lz9")
            manifest.mend(offset)
            changed += 1
    assert changed
    manifest.save()
    before = without_lock(filled)
    for mode in ("own", "read_only"):
        with pytest.raises(meles.FormatVersionError) as caught:
            open_db(mode=mode)
        assert caught.value.message.startswith(f"{filled}/00000")
        assert caught.value.message.endswith(".sst has the codec 'lz9', which is not known here")
        assert caught.value.hint == "open it with the version of meles that wrote it"
        assert without_lock(filled) == before


def test_a_block_of_a_codec_that_is_not_known(open_db: OpenDB, filled: Path) -> None:
    """Under a checksum that fits: it is damage when it is read, and stays as it is."""
    table = SealedTable(filled / "000001.sst")
    for offset, _ in table.parts:
        stored, _, raw, codec, zero = BLOCK_HEAD.unpack_from(table.data, offset)
        assert codec == 2
        BLOCK_HEAD.pack_into(table.data, offset, stored, 0, raw, 9, zero)
        table.mend(offset)
    table.save()
    before = without_lock(filled)
    with open_db(mode="read_only") as db:
        for read in (lambda: db[b"k"], lambda: list(db.items())):
            with pytest.raises(meles.CorruptionError, match="codec 9 is not known") as caught:
                read()
            assert caught.value.path == str(filled / "000001.sst")
            assert caught.value.offset == HEADER_BYTES
            assert "meles doctor" in caught.value.hint
    assert without_lock(filled) == before


@pytest.mark.parametrize(
    ("manifest", "given"),
    [("plain", None), ("plain", KEY), ("damaged", None), ("damaged", KEY), ("missing", KEY)],
    ids=["plain", "plain, a key", "damaged", "damaged, a key", "missing, a key"],
)
def test_a_registry_that_is_missing_beside_sealed_tables(
    open_db: OpenDB, tmp_path: Path, given: Any, manifest: str
) -> None:
    """Also where the MANIFEST cannot say that it should be there."""
    home = tmp_path / "db"
    with open_db(encryption_key=KEY) as db:
        db[b"k"] = b"v" * 5000
        db.flush()
    if manifest == "plain":
        meles.rotate(home, old_key=KEY, plaintext=True)
        open_db().close()  # writes the MANIFEST anew
    elif manifest == "damaged":
        flip(home / "MANIFEST", 20)
    else:
        (home / "MANIFEST").unlink()
    (home / "KEYREGISTRY").unlink()
    before = without_lock(home)
    acts: list[Callable[[], object]] = [
        lambda: open_db(encryption_key=given),
        lambda: open_db(encryption_key=given, mode="read_only"),
    ]
    if manifest != "missing":
        acts.append(lambda: meles.rotate(home, old_key=given, new_key=bytes(16)))
    if given is None and manifest != "plain":
        acts = acts[2:]  # what is wrong with the MANIFEST comes first
    assert acts
    for act in acts:
        with pytest.raises(meles.EncryptionKeyError, match="KEYREGISTRY is missing") as caught:
            act()
        assert "bring KEYREGISTRY back from a copy of the directory" in caught.value.hint
        assert without_lock(home) == before
