"""The bank audits: its own transfers keep the sum, and whoever breaks it is noticed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import meles
import pytest
from meles.engine.stress.bank import Bank, account


@pytest.fixture
def db(tmp_path: Path) -> Iterator[meles.DB]:
    with meles.open(tmp_path / "db", workers="inline", memtable_size="256KiB") as opened:
        yield opened


def test_transfers_keep_the_sum(db: meles.DB) -> None:
    figures = Bank(db, 1).run(0.5)
    assert figures.violations == []
    assert figures.transfers > 20
    assert figures.snapshots > 5
    assert Bank(db, 2).total == 5000  # goes on with what is there


@pytest.mark.parametrize("theft", [b"0", b"999999"])
def test_a_sum_that_is_wrong_is_noticed(db: meles.DB, theft: bytes) -> None:
    bank = Bank(db, 1)
    db[account(3)] = theft
    figures = bank.run(0.0)
    assert "the sum is" in figures.violations[0]


def test_a_negative_balance_is_noticed(db: meles.DB) -> None:
    bank = Bank(db, 1)
    with db.update() as txn:
        txn[account(3)] = b"-100"
        txn[account(4)] = b"300"
    bank.audit()
    assert "holds -100" in bank.figures.violations[0]


def test_a_transfer_that_fails_is_a_violation(db: meles.DB) -> None:
    bank = Bank(db, 1)
    db[account(0)] = b"no number"
    assert bank.run(5.0).violations
