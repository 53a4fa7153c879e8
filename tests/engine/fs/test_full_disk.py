"""No space is `DiskFullError` where nothing was promised yet, and never from a sync."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from meles.engine.errors import DiskFullError
from meles.engine.fs.files import Directory, File

SCRIPT = """
import json, sys
from meles.engine.errors import DiskFullError
from meles.engine.fs.files import Directory

found = {}

def attempt(what, action):
    try:
        action()
    except DiskFullError as error:
        found[what] = [error.errno, isinstance(error.__cause__, OSError), str(error)]

def fill():
    for n in range(10000):
        directory.create(f"{n:0200}").close()

with Directory(sys.argv[1]) as directory:
    with directory.create("a") as file:
        attempt("allocate", lambda: file.allocate(0, 1 << 20))
        attempt("write", lambda: file.pwrite(bytes(1 << 20), 0))
        attempt("create", fill)
    for name in directory.names():
        directory.unlink(name)
    with directory.create("b") as again:
        again.pwrite(b"healed", 0)
    found["after"] = directory.read("b").decode()
print(json.dumps(found))
"""


def test_on_a_file_system_that_is_full(tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=256k,nr_inodes=100 meles-test "$1" || exit 77; shift; exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", str(tmp_path)]
    command += [sys.executable, "-c", SCRIPT, str(tmp_path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("a full file system needs unshare, which is not installed")
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"a full file system needs the right to mount one: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("after") == "healed"
    assert sorted(found) == ["allocate", "create", "write"]
    for what, (code, has_cause, text) in found.items():
        assert code == errno.ENOSPC
        assert has_cause
        assert text.startswith(f"no space to {what}")
    assert os.listdir(tmp_path) == []


def test_on_the_device_that_is_always_full() -> None:
    with File(os.open("/dev/full", os.O_RDWR | os.O_CLOEXEC), "full") as file:
        with pytest.raises(DiskFullError, match="no space to write full") as caught:
            file.pwrite(b"data", 0)
        assert caught.value.errno == errno.ENOSPC
        assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_quotas_count_and_a_full_rename_too(
    directory: Directory, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(DiskFullError, match="no space to rename a") as caught:
        directory.rename("a", "b")
    assert caught.value.errno == code


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_failed_sync_is_no_full_disk(
    directory: Directory, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    with directory.create("a") as file:
        monkeypatch.setattr(os, "fdatasync", refuse)
        monkeypatch.setattr(os, "fsync", refuse)
        for sync in (file.sync, directory.sync):
            with pytest.raises(OSError, match=os.strerror(code)) as caught:
                sync()
            assert type(caught.value) is OSError
            assert caught.value.errno == code
