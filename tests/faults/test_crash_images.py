"""Kills and power cuts before every operation: what the directory holds then is opened again.

A kill leaves all that was written; a power cut what was synced and a random part of the rest. Each
image must show every acknowledged commit, whole transactions, a prefix; recovery itself is cut
short too. `make test` takes a sample, `make test-long` 10,000 images and more.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import meles
import pytest
from fault_fs import MUTATING, FaultDisk, Operation
from story import EVERYTHING, OPTIONS, Data, Story, content
from tally import Tally

rewriting = pytest.mark.usefixtures("frequent_rewrites")

ENCRYPTED = {**OPTIONS, "encryption_key": bytes(range(32))}
KILL = None  # as a share of what was not synced that is kept: everything there is
LONG_SHARES = [KILL, 0.0, 0.05, 0.2, 0.5, 0.8, 0.95]
LONG_SEEDS = int(os.environ.get("MELES_IMAGES", "10000")) // 1700  # images of one telling a seed


@dataclass
class Images:
    """A plan that keeps what would be found if it all ended before an operation."""

    disk: FaultDisk
    source: Path
    target: Path
    keep: float | None
    every: int
    story: Story = field(default_factory=Story)
    seed: int = 0
    seen: int = 0
    taken: list[tuple[Path, int, int]] = field(default_factory=list)

    def __call__(self, operation: Operation) -> None:
        if operation.kind not in MUTATING:
            return
        self.seen += 1
        if (self.seen + self.seed) % self.every or not self.source.exists():
            return
        copy = self.target / str(self.seen)
        if self.keep is None:
            shutil.copytree(self.source, copy)
        else:
            self.target.mkdir(exist_ok=True)
            seed = self.seen + 100_000 * self.seed
            self.disk.power_loss(str(self.source), str(copy), keep=self.keep, seed=seed)
        (copy / "LOCK").unlink(missing_ok=True)
        self.taken.append((copy, self.story.acknowledged, self.story.begun))


def images_of(
    where: Path,
    keep: float | None,
    every: int,
    seed: int = 0,
    story: Story | None = None,
    needs: tuple[str, ...] = EVERYTHING,
) -> Images:
    """Tell the story and take images; it must have seen what it `needs`."""
    home = where / "db"
    with FaultDisk().installed() as disk:
        images = Images(disk, home, where / "images", keep, every, story or Story(), seed)
        disk.plan = images
        images.story.tell(home)
        disk.plan = None
    assert images.story.errors == []
    assert images.story.saw(needs), f"void: {images.story.seen}"
    shutil.rmtree(home)
    return images


def check_image(
    path: Path, story: Story, acknowledged: int, begun: int, keep: float | None
) -> None:
    if "MANIFEST" not in os.listdir(path):
        assert acknowledged == 0
        return
    found = content(path, story.options)
    assert found in story.states[acknowledged : begun + 1]
    with meles.open(path, **story.options) as db:
        assert dict(db.items()) == found
        assert db.verify(values=True).ok
        assert db.stats().recovery.set_aside == [] or keep is not KILL
        newest = db.max_version()
        db[b"next"] = b"x"
        assert db.max_version() > newest
    assert content(path, story.options) == {**found, b"next": b"x"}


def check_all(images: Images, tally: Tally) -> int:
    tally("kill" if images.keep is KILL else "power cut", len(images.taken))
    for path, acknowledged, begun in images.taken:
        try:
            check_image(path, images.story, acknowledged, begun, images.keep)
        except BaseException as error:
            error.add_note(f"{path}: keep {images.keep}, seed {images.seed}")
            raise
        shutil.rmtree(path)
    return len(images.taken)


@pytest.mark.parametrize("keep", [KILL, 0.0, 0.3, 0.8])
@rewriting
def test_whenever_it_ends_what_was_acknowledged_is_there(
    shm_path: Path, tally: Tally, keep: float | None
) -> None:
    assert check_all(images_of(shm_path, keep, every=1 if keep == 0.0 else 3), tally) > 50


@pytest.mark.parametrize("keep", [KILL, 0.0])
def test_without_a_value_log_too(shm_path: Path, tally: Tally, keep: float | None) -> None:
    """Nor with MANIFEST rewrites: both sync the directory, and hide it when something else does
    not.
    """
    story = Story({**OPTIONS, "value_threshold": 1 << 20})
    images = images_of(shm_path, keep, 1, story=story, needs=("flushes", "compactions", "deep"))
    assert check_all(images, tally) > 30


@pytest.mark.parametrize("keep", [KILL, 0.3])
@rewriting
def test_encrypted_too(shm_path: Path, tally: Tally, keep: float | None) -> None:
    images = images_of(shm_path, keep, every=7, story=Story(dict(ENCRYPTED)))
    assert check_all(images, tally) > 20


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("keep", LONG_SHARES)
@rewriting
def test_encrypted_everywhere(shm_path: Path, tally: Tally, keep: float | None) -> None:
    images = images_of(shm_path, keep, every=1, story=Story(dict(ENCRYPTED)))
    assert check_all(images, tally) > 200


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("keep", LONG_SHARES)
@rewriting
def test_ten_thousand_images(shm_path: Path, tally: Tally, keep: float | None) -> None:
    checked = 0
    for seed in range(LONG_SEEDS if keep else 1):
        where = shm_path / str(seed)
        where.mkdir()
        checked += check_all(images_of(where, keep, 1, seed), tally)
        shutil.rmtree(where)
    assert checked > 200


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_without_syncs_a_power_cut_leaves_a_prefix(shm_path: Path, keep: float) -> None:
    story = Story({**OPTIONS, "sync": "none"})
    images = images_of(shm_path, keep, every=2, story=story)
    newest = 0
    for path, _, begun in images.taken:
        if "MANIFEST" in os.listdir(path):
            found = content(path)
            newest = max(n for n, state in enumerate(story.states) if state == found)
            assert newest <= begun
    assert newest > 8


# -- recovery is cut short too -------------------------------------------------------------------


def recoveries_of(
    path: Path, where: Path, keep: float | None, every: int, options: dict[str, Any]
) -> list[Path]:
    """Images of a directory taken while it is being opened."""
    with FaultDisk().installed() as disk:
        images = Images(disk, path, where, keep, every)
        disk.plan = images
        meles.open(path, **options).close()
        disk.plan = None
    return [image for image, _, _ in images.taken]


def check_recoveries(
    shm_path: Path,
    tally: Tally,
    keep: float | None,
    *,
    of_every: int,
    every: int,
    options: dict[str, Any] = OPTIONS,
) -> int:
    """Open images, cut each opening short everywhere, and open what that left: all the same."""
    images = images_of(shm_path, 0.5, of_every, story=Story(dict(options)))
    checked = 0
    for path, _, _ in images.taken:
        if "MANIFEST" not in os.listdir(path):
            continue
        found: Data = content(path, options)
        for image in recoveries_of(path, shm_path / "again", keep, every, options):
            assert content(image, options) == found, image
            with meles.open(image, **options) as db:
                assert dict(db.items()) == found, image
                assert db.verify(values=True).ok
            checked += 1
        shutil.rmtree(shm_path / "again", ignore_errors=True)
    tally("kill in recovery" if keep is KILL else "power cut in recovery", checked)
    return checked


@pytest.mark.parametrize("keep", [KILL, 0.4])
@rewriting
def test_a_crash_in_recovery_changes_nothing(
    shm_path: Path, tally: Tally, keep: float | None
) -> None:
    assert check_recoveries(shm_path, tally, keep, of_every=30, every=3) > 20


@rewriting
def test_a_crash_in_recovery_changes_nothing_encrypted_either(shm_path: Path, tally: Tally) -> None:
    assert check_recoveries(shm_path, tally, 0.4, of_every=60, every=4, options=ENCRYPTED) > 8


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("keep", [KILL, 0.0, 0.4, 0.9])
@rewriting
def test_a_crash_anywhere_in_any_recovery_changes_nothing(
    shm_path: Path, tally: Tally, keep: float | None
) -> None:
    assert check_recoveries(shm_path, tally, keep, of_every=3, every=1) > 500
