"""`meles backup` and `meles restore`: files that are whole or absent, streams, exit codes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import meles
import pytest
from backups import CALM, Entry, beside, content_of, entries
from click.testing import CliRunner, Result
from meles.engine.cli import backup_files
from meles.engine.cli.backup_files import written_whole
from meles.engine.cli.main import commands, exit_code
from meles.engine.cli.verb import CORRUPT, LOCKED, OK, PROBLEM, USAGE

KEY, OTHER = bytes(range(32)), b"k" * 16


@pytest.fixture
def wanted(tmp_path: Path) -> list[Entry]:
    """The closed database `db`, two commits, and what is in it."""
    with meles.open(tmp_path / "db", **CALM) as db:
        db[b"k"] = b"value" * 1000
        db.set(b"l", b"v", ttl=1e6, meta=7)
        return entries(db)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command line in the directory of the test."""
    monkeypatch.chdir(tmp_path)

    def ran(*args: object, input: bytes = b"") -> Result:
        return CliRunner().invoke(commands, [str(arg) for arg in args], input=input)

    return ran


def code(done: Result) -> int:
    error = done.exception
    return exit_code(error) if isinstance(error, meles.Error) else done.exit_code


Run = Callable[..., Result]


def test_to_a_file_and_back(run: Run, tmp_path: Path, wanted: list[Entry]) -> None:
    done = run("backup", "db", "full")
    assert (code(done), done.stderr) == (OK, "")
    assert "2 entries" in done.stdout
    assert "--since 2" in done.stdout
    assert (tmp_path / "full").stat().st_mode & 0o777 == 0o600
    done = run("restore", "new", "full")
    assert (code(done), done.stderr) == (OK, "")
    assert "2 entries, newest version 2" in done.stdout
    assert content_of(tmp_path / "new") == wanted
    assert beside(tmp_path / "new") == ["db", "full"]


def test_increments(run: Run, tmp_path: Path, wanted: list[Entry]) -> None:
    assert code(run("backup", "db", "full")) == OK
    with meles.open(tmp_path / "db", **CALM) as db:
        del db[b"k"]
    done = run("backup", "db", "more", "--since", 2, "--json")
    report = json.loads(done.stdout)
    assert (report["since"], report["version"]) == (2, 3)
    assert report["bytes"] == (tmp_path / "more").stat().st_size
    done = run("restore", "new", "full", "more", "--json")
    assert json.loads(done.stdout)["version"] == 3
    assert content_of(tmp_path / "new") == content_of(tmp_path / "db")
    assert code(run("restore", "other", "more", "full")) == USAGE
    assert code(run("backup", "db", "none", "--since", 4)) == USAGE
    assert beside(tmp_path / "db") == ["full", "more", "new"]


@pytest.mark.parametrize("file", [(), ("-",)])
def test_through_standard_output_and_input(
    run: Run, tmp_path: Path, wanted: list[Entry], file: tuple[str, ...]
) -> None:
    done = run("backup", "db", *file)
    assert code(done) == OK
    assert "2 entries" in done.stderr
    stream = done.stdout_bytes
    assert stream.startswith(b"MELESBAK")
    again = run("backup", "db", *file, "--json")
    assert json.loads(again.stderr)["version"] == 2
    assert run("backup", "db", *file, "--quiet").stderr == ""
    assert code(run("restore", "new", "-", input=stream)) == OK
    assert content_of(tmp_path / "new") == wanted
    assert code(run("restore", "other", "-", "-", input=stream)) == USAGE


def test_only_reading_it_through(run: Run, tmp_path: Path, wanted: list[Entry]) -> None:
    assert code(run("backup", "db", "full")) == OK
    done = run("restore", "--check", "full")
    assert code(done) == OK
    assert done.stdout == "whole: 2 entries, newest version 2\n"
    data = (tmp_path / "full").read_bytes()
    (tmp_path / "full").write_bytes(data[:-1])
    done = run("restore", "--check", "full")
    assert code(done) == CORRUPT
    assert "full at byte" in str(done.exception)
    assert code(run("restore", "--check", "-", input=data)) == OK
    assert code(run("restore", "new", "full")) == CORRUPT
    assert beside(tmp_path / "db") == ["full"]


def test_a_file_that_is_there_stays(run: Run, tmp_path: Path, wanted: list[Entry]) -> None:
    (tmp_path / "full").write_bytes(b"precious")
    done = run("backup", "db", "full")
    assert code(done) == USAGE
    assert "--force" in str(done.exception)
    assert (tmp_path / "full").read_bytes() == b"precious"
    assert code(run("backup", "db", "full", "--force")) == OK
    assert (tmp_path / "full").read_bytes().startswith(b"MELESBAK")
    (tmp_path / "folder").mkdir()
    for more in ((), ("--force",)):
        assert code(run("backup", "db", "folder", *more)) == USAGE
    assert code(run("backup", "db", "missing/full")) == PROBLEM
    assert beside(tmp_path / "db") == ["folder", "full"]


def test_a_backup_that_fails_leaves_no_file(run: Run, tmp_path: Path, wanted: list[Entry]) -> None:
    (tmp_path / "full").write_bytes(b"precious")
    assert code(run("backup", "db", "full", "--force", "--since", 9)) == USAGE
    (values,) = (tmp_path / "db").glob("*.vlog")
    data = bytearray(values.read_bytes())
    data[100] ^= 1
    values.write_bytes(data)
    assert code(run("backup", "db", "full", "--force")) == CORRUPT
    assert (tmp_path / "full").read_bytes() == b"precious"
    assert code(run("backup", "db", "other")) == CORRUPT
    assert beside(tmp_path / "db") == ["full"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(backup_files.os, call, fail)
    with (
        pytest.raises(OSError, match="Input"),
        written_whole(str(tmp_path / "x"), force=False) as f,
    ):
        f.write(b"data")
    assert os.listdir(tmp_path) == []


def test_a_name_taken_meanwhile_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "full"

    def write() -> None:
        with written_whole(str(path), force=False) as file:
            file.write(b"data")
            assert len(os.listdir(tmp_path)) == 1
            path.write_bytes(b"precious")

    with pytest.raises(meles.ConfigError, match="--force"):
        write()
    assert os.listdir(tmp_path) == ["full"]
    assert path.read_bytes() == b"precious"


def test_an_open_database_is_refused(run: Run, tmp_path: Path, wanted: list[Entry]) -> None:
    with meles.open(tmp_path / "db", **CALM):
        assert code(run("backup", "db", "full")) == LOCKED
    assert beside(tmp_path / "db") == []
    assert isinstance(run("backup", "missing", "full").exception, meles.DirectoryMissingError)


def test_only_into_a_new_or_empty_directory(run: Run, tmp_path: Path, wanted: list[Entry]) -> None:
    assert code(run("backup", "db", "full")) == OK
    assert code(run("restore", "db", "full")) == USAGE
    assert code(run("restore", "new", "missing")) == PROBLEM
    assert code(run("restore", "new")) == USAGE
    assert code(run("restore", "--check")) == USAGE
    assert content_of(tmp_path / "db") == wanted
    assert beside(tmp_path / "db") == ["full"]


def test_what_a_killed_restore_left_is_named(run: Run, tmp_path: Path, wanted: list[Entry]) -> None:
    assert code(run("backup", "db", "full")) == OK
    (tmp_path / ".new.restoring-0123abcd").mkdir()
    done = run("restore", "new", "full")
    assert code(done) == OK
    assert ".new.restoring-0123abcd is left of a restore that was cut short" in done.stderr


def test_keys(run: Run, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(KEY)
    (tmp_path / "two").write_bytes(OTHER)
    with meles.open(tmp_path / "db", encryption_key=KEY, **CALM) as db:
        db[b"k"] = b"canary" * 300
        wanted = entries(db)
    assert isinstance(run("backup", "db", "full").exception, meles.EncryptionKeyError)
    done = run("backup", "db", "full", "--key-file", "one")
    assert code(done) == USAGE
    assert "--plain" in str(done.exception)
    assert not (tmp_path / "full").exists()
    assert code(run("backup", "db", "full", "--key-file", "one", "--plain")) == OK
    done = run("restore", "new", "full", "--key-file", "two", "--option", "compression=zstd")
    assert code(done) == OK
    assert content_of(tmp_path / "new", encryption_key=OTHER) == wanted
