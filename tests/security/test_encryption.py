"""S9 to S12: nothing readable anywhere, nothing forged passes, no nonce serves twice."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import meles
import pytest
from fault_fs import MUTATING, FaultDisk, Operation, Torn
from meles.engine.codec.header import FileHeader
from meles.engine.crypt import file_cipher
from meles.engine.crypt.registry import read_registry
from meles.engine.fs.files import Directory
from sealed_files import (
    Sealed,
    SealedLog,
    SealedManifest,
    SealedTable,
    SealedValues,
    forge_plain_blocks,
)
from story import OPTIONS, Story
from waiting import wait_until

KEY = b"CANARY-MASTER-KEY-0123456789abcd"
CANARY = b"CANARY-7f3a9c"
BROKEN = "the seal is broken"  # not "seal", which the paths of these tests have in them
SMALL: dict[str, Any] = {
    "encryption_key": KEY, "workers": "inline", "sync": "none", "memtable_size": "64KiB",
    "base_table_size": "16KiB", "base_level_size": "64KiB", "block_size": 1024,
    "value_threshold": 500,
}  # fmt: skip


def canaries(db: meles.DB, count: int = 900) -> None:
    for n in range(count):
        db.set(CANARY + b" key %05d" % n, (CANARY + b" %d " % n) * (40 if n % 9 == 0 else 2))


# -- S9, S11: nothing readable -------------------------------------------------------------------


def secrets(db: meles.DB) -> list[bytes]:
    """What must be nowhere: keys, values, master key, data keys; also in hexadecimal."""
    keys = [key.secret for key in db._engine.store.dirs.tables.keys.keys.values()]
    plain = [CANARY, KEY, *keys]
    return [*plain, *(secret.hex().encode() for secret in plain)]


def assert_nothing_readable(home: Path, hidden: list[bytes]) -> None:
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        content = path.read_bytes()
        assert not [secret for secret in hidden if secret in content], path


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_canaries_are_in_no_file(tmp_path: Path, compression: str) -> None:
    """After each step of a life: logs, tables, values, MANIFEST, registry, what is set aside."""
    home, options = tmp_path, {**SMALL, "compression": compression}
    with meles.open(home / "db", value_dir=str(home / "values"), **options) as db:
        hidden = secrets(db)
        canaries(db)
        assert_nothing_readable(home, hidden)
        db.drop_prefix(CANARY + b" key 0001")
        for n in range(0, 900, 2):
            db.delete(CANARY + b" key %05d" % n)
        db.flush()
        db.flatten()
        assert db.gc(0.01).rewritten or db.stats().value_log.files
        assert_nothing_readable(home, hidden)
        db.set(CANARY, CANARY * 100)
        shutil.copytree(home / "db", tmp_path / "crashed")
        shutil.copytree(home / "values", tmp_path / "crashed values")
    assert_nothing_readable(home, hidden)
    log = sorted((tmp_path / "crashed").glob("*.mem"))[0]
    data = bytearray(log.read_bytes())
    data[100] ^= 1  # a copy of what follows is kept aside
    log.write_bytes(data)
    crashed = {**options, "value_dir": str(tmp_path / "crashed values")}
    with meles.open(tmp_path / "crashed", **crashed) as db:
        db.verify(values=True)
    assert_nothing_readable(home, hidden)


def test_keys_are_in_no_command_line_no_environment_and_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    options = {**SMALL, "workers": "process", "num_compactors": 1}
    with meles.open(tmp_path / "db", **options) as db:
        hidden = secrets(db)
        canaries(db)
        db.flush()
        assert db.wait_idle(timeout=60)
        wait_until(lambda: all(worker.state == "idle" for worker in db.workers()))
        said = [repr(db.options), repr(db.workers()), repr(db.stats()), repr(db.health())]
        pids = [worker.pid for worker in db.workers()]
        assert len(pids) == 3
        for pid in [*pids, os.getpid()]:
            for name in ("cmdline", "environ"):
                content = Path(f"/proc/{pid}/{name}").read_bytes()
                assert not [secret for secret in hidden if secret in content], (pid, name)
        for pid in pids:
            limits = Path(f"/proc/{pid}/limits").read_text()
            core = next(line for line in limits.splitlines() if line.startswith("Max core"))
            assert core.split()[4:6] == ["0", "0"]
        assert_nothing_readable(tmp_path, hidden)
    said += [record.getMessage() for record in caplog.records]
    for text in said:
        assert not [secret for secret in hidden if secret in text.encode()], text


def test_memory_mode_leaves_nothing_readable_in_shared_memory() -> None:
    with meles.open(None, mode="memory", **SMALL) as db:
        canaries(db)
        assert_nothing_readable(Path(db.path), secrets(db))


def test_a_worker_with_keys_cannot_be_dumped() -> None:
    script = (
        "import ctypes\nfrom meles.workers.child.guard import forbid_core_dumps\n"
        "libc = ctypes.CDLL(None)\nprint(libc.prctl(3, 0, 0, 0, 0))\nforbid_core_dumps()\n"
        "print(libc.prctl(3, 0, 0, 0, 0))"
    )
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0"]


# -- S9: nothing forged --------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with tables, two value-log files and a log, as a crash leaves it."""
    with meles.open(tmp_path / "open", **SMALL, value_log_max_entries=60) as db:
        canaries(db)
        db.flush()
        for n in range(60):
            db.set(CANARY + b" late %d" % n, CANARY * 3)
        assert len(db.tables()) > 1
        shutil.copytree(tmp_path / "open", tmp_path / "db")
    return tmp_path / "db"


def refused(home: Path) -> meles.CorruptionError:
    """The error that opening or reading everything raises; nothing is changed by it."""
    with pytest.raises(meles.CorruptionError) as caught:
        read_all(home)
    return caught.value


def read_all(home: Path) -> dict[bytes, bytes]:
    with meles.open(home, mode="read_only", **SMALL) as db:
        found = dict(db.items())
        for key in found:
            db.get(key)
        problems = db.verify(values=True).problems
        assert not problems
    return found


KINDS: list[tuple[type[Sealed], str]] = [
    (SealedTable, "*.sst"), (SealedValues, "*.vlog"), (SealedLog, "*.mem"),
    (SealedManifest, "MANIFEST"),
]  # fmt: skip
kinds = pytest.mark.parametrize(("kind", "names"), KINDS, ids=[names for _, names in KINDS])


def largest(home: Path, names: str) -> Path:
    return max(home.glob(names), key=lambda path: path.stat().st_size)


def test_what_was_not_touched_is_read(home: Path) -> None:
    assert len(read_all(home)) == 960


@kinds
def test_a_flipped_bit(home: Path, kind: type[Sealed], names: str) -> None:
    path = largest(home, names)
    file = kind(path)
    whole = bytes(file.data)
    offset, length = file.parts[len(file.parts) // 2]
    for at in (offset + length // 2, offset + length - 2):
        file.data[:] = whole
        file.flip(at)
        file.save()
        assert refused(home).path.endswith(path.name)


@kinds
def test_two_things_swapped(home: Path, kind: type[Sealed], names: str) -> None:
    """Of one length, so that nothing else in the file has to change."""
    path = largest(home, names)
    file = kind(path)
    by_length: dict[int, list[int]] = {}
    for offset, length in file.parts:
        by_length.setdefault(length, []).append(offset)
    length, offsets = max(by_length.items(), key=lambda item: len(item[1]))
    if len(offsets) < 2:
        pytest.skip("no two of one length")
    one, other = offsets[0], offsets[-1]
    stored = [bytes(file.data[at : at + length]) for at in (one, other)]
    file.put(one, stored[1])
    file.put(other, stored[0])
    file.save()
    assert refused(home).path.endswith(path.name)


@pytest.fixture
def branches(tmp_path: Path) -> tuple[Path, Path]:
    """One directory, copied, and both copies written to: the same file numbers, other contents."""
    with meles.open(tmp_path / "one", **SMALL) as db:
        db.set(b"first", b"f" * 600)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for name, digit in (("one", b"1"), ("two", b"2")):
        with meles.open(tmp_path / name, **SMALL) as db:
            for n in range(200):
                db.set(b"key %03d" % n, digit * (600 if n % 9 == 0 else 20))
            db.flush()
            for n in range(20):
                db.set(b"late %03d" % n, digit * 20)
            shutil.copytree(tmp_path / name, tmp_path / f"{name} crashed")
    return tmp_path / "one crashed", tmp_path / "two crashed"


@kinds
def test_a_thing_from_another_copy_at_its_own_place(
    branches: tuple[Path, Path], kind: type[Sealed], names: str
) -> None:
    """Cut and paste, and replay: same number, offset and length, sealed with the same data key."""
    path, other = (largest(home, names) for home in branches)
    assert path.name == other.name
    file, source = kind(path), kind(other)
    before = bytes(file.data)
    for offset, length in set(file.parts) & set(source.parts):
        file.put(offset, bytes(source.data[offset : offset + length]))
    assert file.data != before, (file.parts, source.parts)  # or nothing was pasted
    file.save()
    refused(branches[0])


@pytest.mark.parametrize("names", ["*.sst", "*.vlog"])
def test_a_whole_file_from_another_copy(branches: tuple[Path, Path], names: str) -> None:
    path, other = (largest(home, names) for home in branches)
    shutil.copyfile(other, path)
    assert refused(branches[0]).path.endswith(path.name)


def test_a_log_from_another_copy_is_only_that(branches: tuple[Path, Path]) -> None:
    """No other file says which log is the right one, but nothing in it can be changed."""
    path, other = (largest(home, "*.mem") for home in branches)
    shutil.copyfile(other, path)
    found = read_all(branches[0])
    assert found[b"late 000"] == b"2" * 20
    assert found[b"key 001"] == b"1" * 20


@pytest.fixture
def with_plain_blocks(home: Path) -> Path:
    """Plain blocks with right checksums in a sealed table: compiled readers take a plain block
    where it lies.
    """
    with Directory(str(home)) as directory:
        directory.keys = read_registry(directory, KEY)
        for path in home.glob("*.sst"):
            assert forge_plain_blocks(directory, int(path.stem))
    return home


def test_a_plain_block_in_a_sealed_table_is_not_read(with_plain_blocks: Path) -> None:
    with meles.open(with_plain_blocks, mode="read_only", **SMALL) as db:
        for n in range(0, 900, 100):
            with pytest.raises(meles.CorruptionError, match=BROKEN):
                db.get(CANARY + b" key %05d" % n)
        with pytest.raises(meles.CorruptionError, match=BROKEN):
            list(db.keys())
        found = db.verify()  # it begins with what the MANIFEST, itself sealed, says of each file
        assert len(found.problems) == found.tables > 1


def test_a_plain_block_in_a_sealed_table_is_not_merged(with_plain_blocks: Path) -> None:
    with meles.open(with_plain_blocks, **SMALL) as db:
        before = set(with_plain_blocks.glob("*.sst"))
        for n in (0, 899):
            db.set(CANARY + b" key %05d" % n, b"new")  # around all that is there
        db.flush()
        with contextlib.suppress(meles.Error):
            db.flatten(timeout=20)
        assert any(BROKEN in reason for reason in db.health().reasons), db.health()
        assert before <= set(with_plain_blocks.glob("*.sst"))


def test_a_header_that_says_it_is_not_encrypted(home: Path) -> None:
    for path in [*home.glob("*.sst"), *home.glob("*.vlog"), *home.glob("*.mem")]:
        data = path.read_bytes()
        head = FileHeader(data[:8], int(path.stem)).encode()
        path.write_bytes(head + data[64:])
        with pytest.raises(meles.CorruptionError, match=r"not encrypted|not the one"):
            read_all(home)
        path.write_bytes(data)


# -- S10: no nonce twice -------------------------------------------------------------------------


@dataclass
class Nonces:
    """What was sealed under each key and nonce: once, or the same again."""

    sealed: dict[tuple[bytes, bytes], bytes] = field(default_factory=dict)
    again: int = 0
    real: Callable[[bytes], Any] = file_cipher.aead

    def aead(self, key: bytes) -> Any:
        return _Noting(self, key, self.real(key))


class _Noting:
    def __init__(self, nonces: Nonces, key: bytes, real: Any) -> None:
        self._nonces, self._key, self._real = nonces, key, real
        self.decrypt = real.decrypt

    def encrypt(self, nonce: bytes, data: bytes, bound: bytes) -> bytes:
        what = hashlib.sha256(len(bound).to_bytes(4, "little") + bound + data).digest()
        before = self._nonces.sealed.setdefault((self._key, nonce), what)
        self._nonces.again += before != what
        return bytes(self._real.encrypt(nonce, data, bound))


@pytest.fixture
def nonces(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nonces]:
    noted = Nonces()
    monkeypatch.setattr(file_cipher, "aead", noted.aead)
    yield noted
    again, seen = noted.again, len(noted.sealed)
    assert again == 0
    assert seen > 300


def go_on(path: Path, options: dict[str, Any]) -> None:
    """Open a copy and write other things than the original did."""
    with meles.open(path, **options) as db:
        for n in range(3):
            db.set(b"n", str(path).encode() + b"%d" % n)
            db.set(b"v", (str(path).encode() + b"%d" % n) * 60)
        db.flush()


@pytest.mark.parametrize("keep", [None, 0.3])
def test_copies_of_a_live_directory_opened_elsewhere(
    shm_path: Path, nonces: Nonces, keep: float | None
) -> None:
    """Taken in the middle of whatever it does, as a copy or as a power cut leaves it."""
    source, options = shm_path / "db", {**OPTIONS, "encryption_key": KEY}
    taken: list[Path] = []
    with FaultDisk().installed() as disk:

        def copy(operation: Operation) -> None:
            if operation.kind not in MUTATING or not source.exists():
                return
            seen.append(operation.kind)
            if len(seen) % 29 == 7:
                taken.append(shm_path / f"copy {len(seen)}")
                if keep is None:
                    shutil.copytree(source, taken[-1])
                else:
                    disk.power_loss(str(source), str(taken[-1]), keep=keep, seed=len(seen))
                (taken[-1] / "LOCK").unlink(missing_ok=True)

        seen: list[str] = []
        disk.plan = copy
        story = Story(dict(options))
        story.tell(source)
        disk.plan = None
    assert story.errors == []
    assert len(taken) > 8
    for path in taken:
        if (path / "MANIFEST").exists():
            go_on(path, options)


@dataclass
class EverySeventhWrite:
    """Half of it reaches the disk, then that is full."""

    first: int
    count: int = 0

    def __call__(self, operation: Operation) -> None:
        self.count += operation.kind in MUTATING
        if operation.kind == "write" and self.count % 7 == self.first:
            raise Torn(meles.DiskFullError("full"), 0.5)


def test_writes_that_fail_and_are_tried_again(shm_path: Path, nonces: Nonces) -> None:
    """At the same place, with other bytes."""
    options, failed = {**OPTIONS, "encryption_key": KEY}, 0
    for first in range(7):
        with (
            FaultDisk(remember=False).installed() as disk,
            meles.open(shm_path / str(first), **options) as db,
        ):
            disk.plan = EverySeventhWrite(first)
            for n in range(30):
                try:
                    db.set(b"v%d" % (n % 5), b"%d " % n * 700)
                    db.set(b"k%d" % n, b"%d" % n)
                except meles.Error:
                    failed += 1
            disk.plan = None
    assert failed > 5
