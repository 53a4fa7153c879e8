"""Files and directories: who may read them, whose they are, and what planted ones can do."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import meles
import msgpack
import pytest
from fault_fs import FaultDisk
from meles.engine.errors import PermissionsError
from meles.engine.fs.files import Directory
from meles.engine.manifest import manifest_file
from meles.engine.manifest.edit import Edit
from meles.engine.manifest.manifest_file import ManifestFile
from meles.engine.manifest.version import Version, VlogMeta
from story import OPTIONS, Story
from whole import build

NOBODY = 65534
OURS = re.compile(r"MANIFEST(\.new)?|LOCK|\d{5,12}\.(sst|mem|vlog)")


# -- S1: modes and owners ------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["inline", "process"])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, workers: str) -> None:
    before = os.umask(0)
    try:
        story = Story({**OPTIONS, "workers": workers})
        with meles.open(tmp_path / "a" / "db", **story.options) as db:
            story.go_on(db)
            seen = {p: p.stat().st_mode for p in (tmp_path / "a").rglob("*")}
    finally:
        os.umask(before)
    assert {path.suffix for path in seen} >= {".sst", ".mem", ".vlog", ""}
    for path, mode in seen.items():
        assert stat.S_IMODE(mode) == (0o700 if stat.S_ISDIR(mode) else 0o600), path
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o722, 0o1777, 0o703])
def test_a_directory_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    meles.open(tmp_path / "db", **OPTIONS).close()
    (tmp_path / "db").chmod(mode)
    with pytest.raises(PermissionsError, match="others may write"):
        meles.open(tmp_path / "db", **OPTIONS)
    meles.open(tmp_path / "db", trust_directory=True, **OPTIONS).close()
    meles.open(tmp_path / "db", mode="read_only", **OPTIONS).close()


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755, 0o711])
def test_a_directory_others_may_at_most_read_is_opened(tmp_path: Path, mode: int) -> None:
    (tmp_path / "db").mkdir()
    (tmp_path / "db").chmod(mode)
    meles.open(tmp_path / "db", **OPTIONS).close()


@pytest.mark.skipif(os.getuid() != 0, reason="no other owner: this is not root")
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    with meles.open(tmp_path / "db", **OPTIONS) as db:
        db[b"k"] = b"v"
    os.chown(tmp_path / "db", NOBODY, NOBODY)
    before = sorted(os.listdir(tmp_path / "db"))
    with pytest.raises(PermissionsError, match=f"belongs to user {NOBODY}"):
        meles.open(tmp_path / "db", **OPTIONS)
    assert sorted(os.listdir(tmp_path / "db")) == before
    with meles.open(tmp_path / "db", trust_directory=True, **OPTIONS) as db:
        assert db[b"k"] == b"v"


def test_a_value_directory_counts_too(tmp_path: Path) -> None:
    (tmp_path / "values").mkdir()
    (tmp_path / "values").chmod(0o777)
    with pytest.raises(PermissionsError):
        meles.open(tmp_path / "db", value_dir=str(tmp_path / "values"), **OPTIONS)


# -- S2: planted links ---------------------------------------------------------------------------

NAMES = [
    "MANIFEST.new", "LOCK", "00001.mem", "00002.mem", "000001.sst", "000002.sst", "000001.vlog",
    "000002.vlog",
]  # fmt: skip


@pytest.mark.parametrize("target", ["victim", "dangling", "folder"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_written_through_a_planted_link(tmp_path: Path, name: str, target: str) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    victim.write_bytes(b"precious")
    folder.mkdir()
    (folder / "inside").write_bytes(b"precious")
    home = tmp_path / "db"
    home.mkdir(mode=0o700)
    where = {"victim": victim, "dangling": tmp_path / "made", "folder": folder}[target]
    (home / name).symlink_to(where)
    story = Story()
    refusals = contextlib.suppress(meles.Error, OSError)  # as good
    with refusals, meles.open(home, **OPTIONS) as db:
        story.go_on(db)
    assert victim.read_bytes() == b"precious"
    assert (folder / "inside").read_bytes() == b"precious"
    assert sorted(os.listdir(folder)) == ["inside"]
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["MANIFEST", "{sst}", "{vlog}"])
def test_nothing_is_read_through_a_planted_link(tmp_path: Path, name: str) -> None:
    story, home = Story(), tmp_path / "db"
    story.tell(home)
    kind = name.strip("{}")
    path = home / name if kind == name else next(home.glob(f"*.{kind}"))
    shutil.move(path, tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    before = (tmp_path / "moved").read_bytes()
    for mode in ("read_only", "own"):
        with pytest.raises((meles.Error, OSError)):
            meles.open(home, mode=mode, **OPTIONS)
    assert (tmp_path / "moved").read_bytes() == before


# -- S3: names are numbers of ours ---------------------------------------------------------------

WATCH = """
import os, sys, json
sys.path[:0] = {path!r}
from story import Story
import meles
meles.open(None, mode="memory", workers="inline").close()  # all is imported by now
opened = []
def watch(event, args):
    if event in ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.symlink"):
        opened.append([event, str(args[0]), args[2] if event == "open" else 0])
sys.addaudithook(watch)
story = Story()
story.tell({home!r})
assert story.saw_everything()
print(json.dumps(opened))
"""


def test_everything_that_is_written_bears_a_name_of_ours(tmp_path: Path) -> None:
    """Names are resolved against the open directory: none holds a path. (Digits are a descriptor,
    which is cut.)
    """
    script = WATCH.format(path=[p for p in sys.path if p], home=str(tmp_path / "db"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    events = json.loads(done.stdout)
    written = {name for event, name, flags in events
               if event != "open" or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)}  # fmt: skip
    assert len(written) > 20
    strange = {name for name in written if not OURS.fullmatch(name) and not name.isdigit()}
    assert strange <= {str(tmp_path / "db")}  # made at the start
    for event, name, flags in events:
        if event == "open" and OURS.fullmatch(name):
            assert flags & os.O_NOFOLLOW, name
            assert flags & os.O_CLOEXEC, name


HOSTILE: list[Any] = [
    "../../x",
    "/etc/passwd",
    "1\0",
    -1,
    0,
    1 << 40,
    1 << 63,
    1.5,
    None,
    [1],
    b"1",
]


@pytest.mark.parametrize("bad", HOSTILE, ids=repr)
@pytest.mark.parametrize("field", ["table", "vlog", "logical", "remove_vlogs"])
def test_hostile_names_in_a_manifest(tmp_path: Path, field: str, bad: Any) -> None:
    """A record whose checksum holds and whose numbers are none of ours."""
    home = tmp_path / "db"
    Story().tell(home)
    plain: dict[str, Any] = {"put_vlogs": [VlogMeta(900, (900,)).to_plain()]}
    if field == "vlog":
        plain["put_vlogs"][0][0] = bad
    elif field == "logical":
        plain["put_vlogs"][0][1] = [bad]
    elif field == "remove_vlogs":
        plain = {"remove_vlogs": [bad]}
    else:
        with meles.open(home, mode="read_only", **OPTIONS) as db:
            meta = next(iter(db._store.version.tables.values())).to_plain()
        plain = {"add": [[6, {**meta, "i": bad}]]}
    with Directory(str(home)) as directory:
        found = ManifestFile.read(directory, 0)
        payload = msgpack.packb(plain, use_bin_type=True) + manifest_file._END
        number = found.number + 1
        crc = manifest_file.crc32c(
            manifest_file._NUMBER.pack(number) + payload, found.header.seed ^ len(payload)
        )
        with directory.open("MANIFEST", write=True) as file:
            file.pwrite(manifest_file._PREFIX.pack(len(payload), crc, number) + payload, found.end)
    before = {p.name: p.read_bytes() for p in home.iterdir()}
    for mode in ("read_only", "own"):
        with pytest.raises(meles.CorruptionError):
            meles.open(home, mode=mode, **OPTIONS)
    assert {p.name: p.read_bytes() for p in home.iterdir()} == before
    assert isinstance(Edit().apply(Version.empty(2)), Version)


def test_after_a_crash_no_file_from_before_is_appended_to(tmp_path: Path) -> None:
    """What a torn tail was written with is never used again in the same file: once recovery has
    sealed them, new commits go to new files. (The MANIFEST is one file for good.)"""
    whole = build(tmp_path, closed=False)
    before = {name for name in os.listdir(whole.path) if name != "MANIFEST"}
    with (
        FaultDisk(remember=False).installed() as disk,
        meles.open(whole.path, **OPTIONS) as db,
    ):
        recovered = len(disk.log)
        for n in range(30):
            db[b"x%d" % n] = b"y" * 1500
        db.flush()
        db.flatten()
        db.gc(0.1)
        touched = {(each.kind, each.name) for each in disk.log[recovered:] if each.name in before}
        written = {each.name for each in disk.log[recovered:] if each.kind == "write"}
    assert {kind for kind, _ in touched} <= {"open", "read", "map_read", "unlink"}, touched
    assert len(written) > 5
