"""`meles rotate` and `--key-file`: a key comes from a file or a prompt, never the command line."""

from __future__ import annotations

from pathlib import Path

import meles
import pytest
from click.testing import CliRunner
from meles.engine.cli.main import commands, exit_code
from meles.engine.cli.verb import USAGE

KEY, OTHER = bytes(range(32)), b"k" * 16
CALM = ("--option", "workers=inline")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    """Two key files: one raw, one hexadecimal with a line end."""
    (tmp_path / "old").write_bytes(KEY)
    (tmp_path / "new").write_text(OTHER.hex() + "\n")
    return str(tmp_path / "old"), str(tmp_path / "new")


def run(*args: object, input: str | None = None) -> tuple[int, str]:
    done = CliRunner().invoke(commands, [str(arg) for arg in args], input=input)
    if isinstance(done.exception, meles.Error):
        return exit_code(done.exception), str(done.exception)
    return done.exit_code, done.output


def test_a_key_file_opens(tmp_path: Path, keys: tuple[str, str]) -> None:
    assert run("set", tmp_path / "db", "k", "v", "--key-file", keys[0], *CALM)[0] == 0
    code, out = run("get", tmp_path / "db", "k", "--key-file", keys[0], *CALM)
    assert (code, out.strip()) == (0, "v")
    assert "no key was given" in run("get", tmp_path / "db", "k", *CALM)[1]
    assert "not the key" in run("info", tmp_path / "db", "--key-file", keys[1])[1]
    code, out = run("get", tmp_path / "db", "k", "--key-file", "-", *CALM, input=KEY.hex() + "\n")
    assert code == 0
    assert "v" in out.splitlines()
    assert KEY.hex() not in out


def test_rotate(tmp_path: Path, keys: tuple[str, str]) -> None:
    with meles.open(tmp_path / "db", workers="inline") as db:
        db[b"k"] = b"v"
    code, out = run("rotate", tmp_path / "db", "--new-key-file", keys[0])
    assert code == 0
    assert "is encrypted under the new key" in out
    with meles.open(tmp_path / "db", workers="inline", encryption_key=KEY) as db:
        db[b"l"] = b"v"
    lines = run("info", tmp_path / "db", "--key-file", keys[0])[1].splitlines()
    assert "encrypted: 1 of 2 files, with data key 1" in lines
    assert "not encrypted yet: 000001.sst" in lines
    assert (
        run("rotate", tmp_path / "db", "--old-key-file", keys[0], "--new-key-file", keys[1])[0] == 0
    )
    with meles.open(tmp_path / "db", workers="inline", encryption_key=OTHER) as db:
        assert db[b"k"] == b"v"
    code, out = run("rotate", tmp_path / "db", "--old-key-file", keys[1])
    assert code == USAGE
    assert "plaintext" in out
    code, out = run("rotate", tmp_path / "db", "--old-key-file", "-", "--plaintext", input="bb\n")
    assert code == USAGE
    assert "16, 24 or 32" in out
    answer = OTHER.hex() + "\n"
    code, out = run("rotate", tmp_path / "db", "--old-key-file", "-", "--plaintext", input=answer)
    assert code == 0
    assert "not encrypted any more" in out
    assert OTHER.hex() not in out
    with meles.open(tmp_path / "db", workers="inline") as db:
        assert db[b"k"] == b"v"


def test_a_key_on_the_command_line_is_refused(tmp_path: Path) -> None:
    code, out = run("info", tmp_path / "db", "--option", f"encryption_key={KEY.hex()}")
    assert code == USAGE
    assert "--key-file" in out
    assert KEY.hex() not in out


def test_a_file_that_holds_no_key_is_named_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"CANARY")
    for name in ("key", "missing"):
        code, out = run("info", tmp_path / "db", "--key-file", tmp_path / name)
        assert code == USAGE
        assert "key file" in out
        assert "CANARY" not in out
