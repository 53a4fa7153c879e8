"""Hosts that end in every way but closing: no worker, no lock, everything acknowledged there."""

from __future__ import annotations

import os
import signal

import meles
import pytest

HOST = """
import os, signal, sys, threading
import meles

def fill(db):
    for n in range(2000):
        db.set(b"k%04d" % n, b"%d" % n * (2 if n % 3 else 500))
    with db.update() as txn:
        txn.delete(b"k0000")

db = meles.open(
    sys.argv[1], memtable_size=256 << 10, value_log_file_size=1 << 20, close_timeout=60
)
fill(db)
print("written", flush=True)
"""

# How the host ends, what its exit code is then, and what must stand on its standard error.
ENDS = {
    "the last line": ("", 0, ""),
    "the last line of a function": (
        "del db\ndef run():\n    db = meles.open(sys.argv[1], wait=30)\n    db.set(b'x', b'y')\n"
        "run()", 0, "was not closed",
    ),
    "sys.exit": ("sys.exit(4)", 4, ""),
    "an exception": ("raise RuntimeError('of the host')", 1, "RuntimeError: of the host"),
    "an exception in with": ("with db: raise RuntimeError('of the host')", 1, "of the host"),
    "an open transaction": ("txn = db.update(); txn.set(b'never', b'committed')", 0, ""),
    "an open iterator": ("cursor = db.items(); next(cursor)", 0, ""),
    "a thread at work": (
        "def work():\n    try:\n        while True: db.set(b'z', bytes(3000))\n"
        "    except meles.ClosedError: pass\n"
        "threading.Thread(target=work, daemon=True).start()", 0, "",
    ),
    "sys.exit of a thread": (
        "thread = threading.Thread(target=sys.exit); thread.start(); thread.join()", 0, "",
    ),
    "os._exit": ("os._exit(5)", 5, ""),
    "os.abort": ("os.abort()", -signal.SIGABRT, "Fatal Python error: Aborted"),
    "a segmentation fault": (
        "os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV, "Segmentation fault",
    ),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
    "Ctrl-C": (
        "signal.raise_signal(signal.SIGINT)\nwhile True: pass", None, "KeyboardInterrupt",
    ),
    "another program": ("os.execv('/bin/true', ['true'])", 0, ""),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_a_host_that_does_not_close(program, tmp_path, end):
    code, expected, said = ENDS[end]
    host = program("-X", "dev", "-c", HOST + code, str(tmp_path / "db"))
    host.expect("written")
    found = host.wait()
    assert expected is None or found == expected, host.errors()
    errors = host.errors()
    assert said in errors
    assert said or errors == ""
    with meles.open(tmp_path / "db", mode="read_only") as db:
        expect_all(db)
    with meles.open(tmp_path / "db", workers="inline") as db:
        expect_all(db)
        assert db.verify(values=True).ok
    assert not [name for name in os.listdir(tmp_path / "db") if name == "LOCK"]


def expect_all(db):
    rest = {b"k%04d" % n: b"%d" % n * (2 if n % 3 else 500) for n in range(1, 2000)}
    assert dict(db.items(b"k")) == rest
    assert b"k0000" not in db
    assert b"never" not in db


def test_ends_that_close_leave_nothing_to_recover(program, tmp_path):
    """The interpreter's end closes what nobody closed."""
    host = program("-X", "dev", "-c", HOST, str(tmp_path / "db"))
    assert host.wait() == 0
    with meles.open(tmp_path / "db", mode="read_only") as db:
        assert db.stats().recovery.logs == 0
        assert db.stats().recovery.transactions == 0
