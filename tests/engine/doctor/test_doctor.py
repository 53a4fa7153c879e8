"""The doctor: explains what it finds in plain words, repairs it on request, deletes nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import meles
import pytest
from story import OPTIONS
from whole import CHANGES, Change, Whole, build, listing, missing, swapped


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return build(tmp_path_factory.mktemp("whole"), closed=False)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return build(tmp_path_factory.mktemp("closed"), closed=True)


def look(path: Path) -> meles.Diagnosis:
    """Without `fix`, nothing changes."""
    before = listing(path)
    found = meles.doctor(path, **OPTIONS)
    assert listing(path) == before
    return found


def fix(path: Path) -> meles.Diagnosis:
    """Whatever was there is there still, under its own name or another.

    Where keys had to be deleted the directory was opened: then recovery has made logs into tables
    and ended value-log files.
    """
    before = listing(path)
    found = meles.doctor(path, fix=True, **OPTIONS)
    opened = any("deleted" in line for line in found.done)
    kept = list(listing(path).values())
    for name, data in before.items():
        ended = opened and (name.endswith(".mem") or any(has.startswith(data) for has in kept))
        assert data in kept or ended, f"{name} is gone: {found.done}"
    return found


def read_all(whole: Whole, path: Path) -> dict[bytes, bytes | None]:
    """Every key; each value is one that the key once had."""
    ever: dict[bytes, set[bytes | None]] = {}
    for state in whole.states:
        for key in state:
            ever.setdefault(key, {None}).add(state[key])
    found: dict[bytes, bytes | None] = {}
    with meles.open(path, **OPTIONS) as db:
        for key, values in ever.items():
            found[key] = db.get(key)
            assert found[key] in values
        db[b"after"] = b"written"
        db.flush()
        db.flatten()
        assert db[b"after"] == b"written"
    return found


def test_a_healthy_directory(whole: Whole) -> None:
    found = look(whole.path)
    assert found == meles.Diagnosis(str(whole.path), True, "", [], [])


def cure_each(whole: Whole, where: Path, change: Change) -> None:
    for name in whole.kinds:
        path = Path(shutil.copytree(whole.path, where / name))
        if not change(whole, path, name):
            continue
        try:
            cure(whole, path)
        except BaseException as error:
            error.add_note(f"{name} ({whole.kinds[name]}) {change.__name__}")
            raise
        shutil.rmtree(path)


def cure(whole: Whole, path: Path) -> None:
    found = look(path)
    if found.ok:  # the end of what was being written: recovery deals with that
        assert found.findings == found.done == []
        return
    assert found.problem
    assert found.findings, found
    assert all(finding.plan and finding.loses for finding in found.findings), found
    done = fix(path)
    assert done.ok, done
    assert done.done
    assert done.findings == found.findings
    assert look(path).ok
    data = read_all(whole, path)
    if all(line.loses == "nothing" for line in found.findings) and len(done.done) == len(
        found.findings
    ):
        assert data == {key: whole.states[-1].get(key) for key in data}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_of_a_killed_database_a_file_that_is(whole: Whole, shm_path: Path, change: Change) -> None:
    cure_each(whole, shm_path, change)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_of_a_closed_database_a_file_that_is(closed: Whole, shm_path: Path, change: Change) -> None:
    cure_each(closed, shm_path, change)


# -- what each cure keeps ------------------------------------------------------------------------


@pytest.fixture
def sick(closed: Whole, shm_path: Path) -> Path:
    return Path(shutil.copytree(closed.path, shm_path / "db"))


def test_swapped_names_are_given_back_and_nothing_is_lost(closed: Whole, sick: Path) -> None:
    for kind in ("table", "value log"):
        assert swapped(closed, sick, closed.names(kind)[0])
    assert {finding.loses for finding in look(sick).findings} == {"nothing"}
    assert fix(sick).ok
    with meles.open(sick, mode="read_only", **OPTIONS) as db:
        assert dict(db.items()) == closed.states[-1]


@pytest.mark.parametrize("kind", ["table", "value log", "log"])
def test_a_damaged_header_costs_nothing(
    closed: Whole, whole: Whole, shm_path: Path, kind: str
) -> None:
    which = whole if kind == "log" else closed
    path = Path(shutil.copytree(which.path, shm_path / "db"))
    name = which.names(kind)[0]
    data = bytearray((path / name).read_bytes())
    data[20] ^= 4
    (path / name).write_bytes(data)
    found = look(path)
    assert [finding.file for finding in found.findings] == [name]
    assert fix(path).ok
    with meles.open(path, mode="read_only", **OPTIONS) as db:
        assert dict(db.items()) == which.states[-1]


def test_without_a_manifest_everything_is_put_together_again(closed: Whole, sick: Path) -> None:
    missing(closed, sick, "MANIFEST")
    assert "no order" in look(sick).findings[0].what
    assert fix(sick).ok
    with meles.open(sick, **OPTIONS) as db:
        assert dict(db.items()) == closed.states[-1]
        newest = db.max_version()
        db[b"next"] = b"x"
        assert db.max_version() == newest + 1
        db.flatten()
        db.gc(0.1)
    with meles.open(sick, mode="read_only", **OPTIONS) as db:
        assert dict(db.items()) == {**closed.states[-1], b"next": b"x"}


def test_a_damaged_block_costs_its_own_keys_only(closed: Whole, sick: Path) -> None:
    name = max(closed.names("table"), key=lambda name: (sick / name).stat().st_size)
    data = bytearray((sick / name).read_bytes())
    data[200] ^= 1  # in the first block
    (sick / name).write_bytes(data)
    with meles.open(sick, mode="read_only", **OPTIONS) as db:
        readable = {}
        for key in closed.states[-1]:
            try:
                readable[key] = db.get(key)
            except meles.CorruptionError:
                continue
    assert 0 < len(readable) < len(closed.states[-1])
    assert fix(sick).ok
    found = read_all(closed, sick)
    assert {key: found[key] for key in readable} == readable


def test_a_cure_that_is_cut_short_is_taken_up_again(closed: Whole, sick: Path) -> None:
    """The damaged table was set aside and the MANIFEST was not changed yet."""
    name = closed.names("table")[0]
    data = bytearray((sick / name).read_bytes())
    data[200] ^= 1
    (sick / f"{name}.aside").write_bytes(data)
    (sick / name).unlink()
    assert "set aside" in look(sick).findings[0].what
    assert fix(sick).ok
    read_all(closed, sick)


# -- what is no damage ---------------------------------------------------------------------------


def test_a_directory_that_is_in_use(tmp_path: Path) -> None:
    with meles.open(tmp_path / "db", **OPTIONS):
        found = meles.doctor(tmp_path / "db", fix=True, **OPTIONS)
    assert not found.ok
    assert "somebody has it open" in found.problem
    assert str(os.getpid()) in found.problem
    assert found.findings == found.done == []


def test_no_directory_and_an_empty_one(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        found = meles.doctor(path, fix=True, **OPTIONS)
        assert "no database" in found.problem
        assert found.findings == []
    assert os.listdir(tmp_path) == []


def test_another_external_version_is_an_option_not_damage(tmp_path: Path) -> None:
    meles.open(tmp_path / "db", external_magic_version=7, **OPTIONS).close()
    found = look(tmp_path / "db")
    assert "external_magic_version" in found.problem
    assert found.findings == []


def test_a_newer_version_is_never_touched(closed: Whole, sick: Path) -> None:
    from meles.engine.codec.checksum import crc32c

    name = closed.names("table")[0]
    data = bytearray((sick / name).read_bytes())
    data[8] = 2
    data[60:64] = crc32c(bytes(data[:60])).to_bytes(4, "little")
    (sick / name).write_bytes(data)
    before = listing(sick)
    found = meles.doctor(sick, fix=True, **OPTIONS)
    assert not found.ok
    assert "newer version" in found.problem
    assert listing(sick) == before


def test_keys_of_lost_values_are_deleted_and_the_rest_stays(closed: Whole, sick: Path) -> None:
    name = next(name for name in closed.names("value log") if (sick / name).stat().st_size > 4000)
    missing(closed, sick, name)
    assert "is missing" in look(sick).findings[0].what
    done = fix(sick)
    assert done.ok
    assert any("deleted" in line for line in done.done)
    with meles.open(sick, mode="read_only", **OPTIONS) as db:
        found = dict(db.items())
    assert found.items() < closed.states[-1].items()
    assert all(len(closed.states[-1][key]) >= 1000 for key in closed.states[-1].keys() - found)
