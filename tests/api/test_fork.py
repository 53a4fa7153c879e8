"""A handle, and what was made of it, in a forked child: `ForkedHandleError` and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FORK = """
import os, sys, meles
db = meles.open(sys.argv[1], mode=sys.argv[2], workers="inline", sync="none", namespace_offset=0)
own = sys.argv[2] != "read_only"
made = dict(view=db.view(), cursor=db.keys(), changes=db.subscribe())
if own:
    made.update(update=db.update(), batch=db.write_batch(), sequence=db.sequence(b"s"),
                merge=db.merge_operator(b"m", lambda a, b: a))
    made["update"][b"k"] = b"child"
    made["batch"][b"k"] = b"child"
pid = os.fork()
if pid == 0:
    uses = {
        "get": lambda: db.get(b"k"), "in": lambda: b"k" in db, "many": lambda: db.get_many([b"k"]),
        "set": lambda: db.set(b"k", b"v"), "view": lambda: db.view(), "keys": lambda: db.keys(),
        "stats": lambda: db.stats(), "flush": lambda: db.flush(), "enter": lambda: db.__enter__(),
        "txn.get": lambda: made["view"].get(b"k"), "txn.keys": lambda: made["view"].keys(),
        "next": lambda: next(made["cursor"]), "seek": lambda: made["cursor"].seek(b"k"),
        "change": lambda: next(made["changes"]),
    }
    if own:
        uses |= {
            "commit": lambda: made["update"].commit(),
            "txn.set": lambda: made["update"].set(b"k", b""),
            "batch.set": lambda: made["batch"].set(b"k", b"v"),
            "batch.flush": lambda: made["batch"].flush(),
            "number": lambda: next(made["sequence"]), "merge.get": lambda: made["merge"].get(),
            "merge.add": lambda: made["merge"].add(b"v"),
        }
    wrong = []
    for name, use in uses.items():
        try:
            use()
            wrong.append((name, "no error"))
        except meles.ForkedHandleError as error:
            if not isinstance(error, meles.ClosedError):
                wrong.append((name, "no ClosedError"))
        except BaseException as error:
            wrong.append((name, repr(error)))
    made["view"].discard()
    made["cursor"].close()
    made["changes"].close()
    db.close()
    print(wrong)
    sys.stdout.flush()
    os._exit(bool(wrong))
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert db.get(b"k") is None
if own:
    made["merge"].stop()
    made["batch"].cancel()
    made["update"].discard()
    db[b"k"] = b"parent"
    assert db[b"k"] == b"parent"
made["view"].discard()
made["changes"].close()
db.close()
sys.exit(status)
"""


@pytest.mark.parametrize("mode", ["own", "read_only"])
def test_everything_is_refused_in_the_child_and_works_in_the_parent(
    tmp_path: Path, mode: str
) -> None:
    path = str(tmp_path / "db")
    make = f"import meles; meles.open({path!r}, workers='inline').close()"
    subprocess.run([sys.executable, "-c", make], check=True, timeout=60)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, path, mode],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout.strip(), ran.stderr) == (0, "[]", "")
