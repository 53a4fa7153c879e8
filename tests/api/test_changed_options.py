"""A directory is opened with other options each time: any may follow any others."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import meles
import pytest
from meles.engine.stress.draw import draw

pytestmark = pytest.mark.leak_guard
OpenDB = Callable[..., meles.DB]
CODECS = ["none", "snappy", "lz4", "zstd"]
KEYS = [b"%03d" % n for n in range(400)]


def write(db: meles.DB, model: dict[bytes, bytes], rng: random.Random) -> None:
    for key in rng.sample(KEYS, 200):
        if rng.random() < 0.2:
            db.delete(key)
            model.pop(key, None)
        else:
            model[key] = db[key] = rng.randbytes(rng.choice((5, 40, 400, 2000)))


@pytest.mark.parametrize("seed", range(6))
def test_any_options_after_any_others(open_db: OpenDB, seed: int) -> None:
    rng, model = random.Random(seed), dict[bytes, bytes]()
    for number in range(8):
        db = open_db(**draw(seed, number, CODECS).options)
        assert dict(db.items()) == model
        write(db, model, rng)
        if rng.random() < 0.7:
            db.flush()
        if rng.random() < 0.5:
            db.flatten()
        assert dict(db.items()) == model
        assert db.verify().ok
        db.close()


@pytest.mark.parametrize(
    "counts",
    [(2, 16, 3), (4, 7), (7, 4, 7), (16, 2, 2)],
    ids=lambda counts: "-".join(map(str, counts)),
)
def test_more_and_fewer_levels(open_db: OpenDB, tmp_path: Path, counts: tuple[int, ...]) -> None:
    """With tables on the last level there is, each time; the MANIFEST is what it was made as."""
    model: dict[bytes, bytes] = {}
    for nth, max_levels in enumerate(counts):
        for round_ in range(2):
            db = open_db(max_levels=max_levels)
            assert dict(db.items()) == model
            if not round_:
                db.drop_all()  # or all stays where it was
                model.clear()
            write(db, model, random.Random(nth))
            db.flush()
            db.flatten()
            deepest = max(level.level for level in db.levels() if level.tables)
            assert deepest == max(counts[: nth + 1]) - 1
            db.close()
            with meles.open(tmp_path / "db", mode="read_only", workers="inline") as reader:
                assert dict(reader.items()) == model
    assert meles.doctor(tmp_path / "db").ok
