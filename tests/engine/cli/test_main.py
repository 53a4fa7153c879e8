"""The command line as a user meets it: output, exit codes, one-line errors."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import meles
import pytest
from meles.engine.cli.main import main

INLINE = ("--option", "workers=inline")


@dataclass
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*args: str | os.PathLike[str], stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfdbinary.readouterr()
        code = main([os.fspath(arg) for arg in args])
        out, err = capfdbinary.readouterr()
        return Done(code, out.decode(errors="surrogateescape"), err.decode())

    return call


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    path = tmp_path / "db"
    with meles.open(path, workers="inline") as db:
        for key, value in ((b"a", b"1"), (b"b/1", b"two\n"), (b"b/2", b"\xff"), (b"c", b"")):
            db.set(key, value)
        db.set(b"c", b"new")
        db.delete(b"a")
    return path


def test_set_get_del_and_count(run: Run, tmp_path: Path) -> None:
    db = tmp_path / "db"
    assert run("set", db, "k", "grün", *INLINE) == Done(0, "", "")
    assert run("get", db, "k") == Done(0, "grün\n", "")
    assert run("set", db, "k2", "-", *INLINE, stdin=b"raw\xff\n").code == 0
    assert run("get", db, "k2") == Done(0, "raw\\xff\\n\n", "")
    assert run("get", db, "k2", "--format", "raw").out == "raw\udcff\n"
    assert run("get", db, "6b32", "--hex", "--format", "hex").out == "726177ff0a\n"
    assert run("get", db, "k2", "--json").out == '{"hex": "726177ff0a"}\n'
    assert run("count", db) == Done(0, "2\n", "")
    assert run("del", db, "k", "k2", "absent", *INLINE) == Done(0, "", "")
    assert run("count", db, "--json").out == '{"count": 0}\n'
    missing = run("get", db, "k")
    assert (missing.code, missing.out, missing.err) == (1, "", "meles: no such key\n")


def test_time_to_live_is_kept(run: Run, tmp_path: Path) -> None:
    db = tmp_path / "db"
    run("set", db, "k", "v", "--ttl", "3600", *INLINE)
    with meles.open(db, mode="read_only") as opened, opened.view() as txn:
        item = txn.item(b"k")
        assert item is not None
        assert item.expires_at > 0
    assert run("set", db, "k", "v", "--ttl", "-1", *INLINE).code == 2


def test_scan(run: Run, filled: Path) -> None:
    assert run("scan", filled).out == "b/1\ttwo\\n\nb/2\t\\xff\nc\tnew\n"
    assert run("scan", filled, "--reverse", "--keys-only").out == "c\nb/2\nb/1\n"
    assert run("scan", filled, "--prefix", "b/", "--limit", "1").out == "b/1\ttwo\\n\n"
    assert run("scan", filled, "--start", "b/2", "--stop", "c", "--keys-only").out == "b/2\n"
    rows = [json.loads(line) for line in run("scan", filled, "--json").out.splitlines()]
    assert rows[0] == {"key": "b/1", "value": "two\n"}
    assert rows[1] == {"key": "b/2", "value": {"hex": "ff"}}
    assert "a\t6 deleted\t" in run("scan", filled, "--all-versions").out
    assert run("count", filled, "--prefix", "b/").out == "2\n"


def test_info_verify_and_json(run: Run, filled: Path) -> None:
    info = run("info", filled)
    assert info.code == 0
    assert f"{filled}: read_only" in info.out
    assert "L0" in info.out
    data = json.loads(run("info", filled, "--json").out)
    assert data["size"]["lsm_bytes"] > 0
    assert data["health"]["status"] == "read_only"
    space = run("space", filled)
    assert space.code == 0
    assert " in all" in space.out
    checked = run("verify", filled, "--values")
    assert checked.code == 0
    assert checked.out.startswith("ok: 1 tables")
    assert run("verify", filled, "--quiet").out == ""


def test_verify_of_a_damaged_table_exits_4(run: Run, filled: Path) -> None:
    (table,) = filled.glob("*.sst")
    data = bytearray(table.read_bytes())
    data[100] ^= 0xFF
    table.write_bytes(data)
    damaged = run("verify", filled)
    assert damaged.code == 4
    assert "000001.sst" in damaged.out + damaged.err


def test_doctor_explains_then_repairs(run: Run, filled: Path) -> None:
    assert run("doctor", filled).out == "ok: it opens, and every checksum holds\n"
    (filled / "MANIFEST").unlink()
    ill = run("doctor", filled)
    assert ill.code == 4
    assert "a file is damaged or missing" in ill.out
    assert "MANIFEST: is missing" in ill.out
    assert "plan: make a new MANIFEST" in ill.out
    assert "nothing was changed" in ill.out
    assert run("count", filled).code == 4
    cured = run("doctor", filled, "--fix", "--json")
    assert cured.code == 0
    assert json.loads(cured.out)["ok"]
    assert run("count", filled).out == "3\n"
    assert run("doctor", filled / "absent").code == 1


def test_gc_flatten_and_workers(run: Run, filled: Path) -> None:
    collected = run("gc", filled, *INLINE)
    assert collected.code == 0
    assert "files examined" in collected.out
    assert run("gc", filled, *INLINE, "--discard-ratio", "2").code == 2
    flat = run("flatten", filled, *INLINE)
    assert flat.code == 0
    assert flat.out.split()[0] == "level"
    shown = run("workers", filled, "--option", "workers=thread")
    assert shown.code == 0, shown
    for kind in ("flusher", "compactor", "value_gc"):
        assert kind in shown.out


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["nonsense"], 2, "No such command"),
        (["get"], 2, "Missing argument"),
        (["count", "{tmp}/none"], 1, "check the path"),
        (["set", "{tmp}/db", "", "v", *INLINE], 2, "1 to 65,000"),
        (["set", "{tmp}/db", "zz", "v", "--hex", *INLINE], 2, "not hexadecimal"),
        (["set", "{tmp}/db", "k", "v", "--option", "sinc=none"], 2, "did you mean 'sync'"),
        (["set", "{tmp}/db", "k", "v", "--option", "sync"], 2, "not name=value"),
        (["set", "{tmp}/db", "k", "v", "--config", "{tmp}/none.toml"], 2, "cannot be read"),
        (["ingest", "{tmp}/db", "{tmp}/none", *INLINE], 1, "No such file"),
        (["ingest", "{tmp}/db", "{tmp}", *INLINE], 1, "use --format tree"),
        (["ingest", "{tmp}/db", "-", "--key", "{{x}}", *INLINE], 2, "is unknown"),
    ],
)
def test_an_error_is_one_line_with_its_hint(
    run: Run, tmp_path: Path, args: list[str], code: int, text: str
) -> None:
    done = run(*(arg.format(tmp=tmp_path) for arg in args))
    assert done.code == code, done
    assert text in done.err
    assert "Traceback" not in done.err
    assert len([line for line in done.err.splitlines() if "rror" in line or "meles:" in line]) == 1


def test_a_locked_database_exits_3_and_names_the_owner(run: Run, tmp_path: Path) -> None:
    with meles.open(tmp_path / "db", workers="inline"):
        done = run("count", tmp_path / "db")
    assert done.code == 3
    assert f"process {os.getpid()}" in done.err
    assert len(done.err.splitlines()) == 1


def test_ingest_reports_figures_and_stages(run: Run, tmp_path: Path) -> None:
    db = tmp_path / "db"
    done = run("ingest", db, "-", "--key", "{n:03d}", *INLINE, stdin=b"one\ntwo")
    assert done.code == 0, done
    assert done.out.startswith("2 records committed, 7 B in ")
    assert "release_locks" in done.out
    assert done.err.startswith("ingest: 2 records")
    assert run("scan", db).out == "001\tone\n002\ttwo\n"
    done = run("ingest", db, "-", "--json", "--quiet", *INLINE, stdin=b"x\n")
    assert json.loads(done.out)["report"]["tally"]["committed"] == 1
    assert done.err == ""


def test_ingest_of_bad_records(run: Run, tmp_path: Path) -> None:
    path, db = tmp_path / "in.jsonl", tmp_path / "db"
    path.write_text('{"id": 1}\n{"id": \n{"id": 3}\n')
    args = ("ingest", db, path, "--format", "jsonl", "--key", "id", *INLINE)
    stopped = run(*args)
    assert stopped.code == 1
    assert f"bad record: {path}, line 2: not JSON" in stopped.err
    assert f"stopped at {path}, line 2" in stopped.out
    assert f"the last record written is {path}, line 1" in stopped.out
    assert run("scan", db, "--keys-only").out == "1\n"
    skipped = run(*args, "--on-error", "skip")
    assert skipped.code == 1
    assert "1 bad records were not written" in skipped.out
    assert run("scan", db, "--keys-only").out == "1\n3\n"


def test_ingest_of_csv_and_tree(run: Run, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "in.csv").write_text("id,name\n7,x\n")
    db = tmp_path / "db"
    args = ("ingest", db, tmp_path / "t" / "in.csv", "--format", "csv", "--key", "u/{id}", *INLINE)
    assert run(*args).code == 0
    assert run("ingest", db, tmp_path / "t", "--format", "tree", *INLINE).code == 0
    assert run("scan", db).out == 'in.csv\tid,name\\n7,x\\n\nu/7\t{"id":"7","name":"x"}\n'


def test_config_show_and_check(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MELES_BLOCK_SIZE", "8KiB")
    monkeypatch.setenv("MELES_ENCRYPTION_KEY", "00" * 16)
    args = ("config", "show", "--config", "tiny", "--option", "sync=none", "--origin")
    lines = run(*args).out.splitlines()
    shown = {line.split(" = ")[0]: line for line in lines[1:]}
    assert 'sync = "none"' in shown["sync"]
    assert shown["sync"].endswith("# command line")
    assert "8192" in shown["block_size"]
    assert shown["block_size"].endswith("# environment variable MELES_BLOCK_SIZE")
    assert "tiny.toml" in shown["memtable_size"]
    assert shown["num_memtables"].endswith("# default")
    assert "<hidden>" in shown["encryption_key"]
    assert "00000000" not in "".join(lines)
    data = json.loads(run(*args, "--json").out)
    assert data["sync"] == {"value": "none", "origin": "command line"}

    bad = tmp_path / "bad.toml"
    bad.write_text("[meles]\nblock_size = 1\n")
    done = run("config", "check", bad)
    assert done.code == 1
    assert "option block_size=1" in done.out
    assert run("config", "check", "ingest") == Done(0, "ok: ingest\n", "")


def test_what_config_show_prints_is_a_config(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "all.toml"
    path.write_text(run("config", "show", "--config", "durable").out)
    assert run("config", "check", path).code == 0
    again = run("config", "show", "--config", path).out
    assert again == path.read_text()


def command(*args: str | os.PathLike[str]) -> list[str]:
    return [sys.executable, "-m", "meles.engine.cli", *map(os.fspath, args)]


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    with meles.open(tmp_path / "db", workers="inline") as db, db.write_batch() as batch:
        for number in range(20_000):
            batch.set(b"%06d" % number, b"x" * 50)
    with subprocess.Popen(
        command("scan", tmp_path / "db"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as scan:
        assert scan.stdout is not None
        assert scan.stderr is not None
        assert scan.stdout.readline() == b"000000\t" + b"x" * 50 + b"\n"
        scan.stdout.close()
        assert scan.stderr.read() == b""
        assert scan.wait(60) == 0


def test_asking_for_help_loads_no_engine_and_no_display() -> None:
    code = (
        "import sys\n"
        "from meles.engine.cli.main import main\n"
        "assert main(['ingest', '--help']) == 0\n"
        "bad = [m for m in sys.modules if m in ('rich', 'meles.supervisor', 'multiprocessing')]\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"{source}:{n}" in done.stdout
