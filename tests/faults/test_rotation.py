"""Another master key while everything fails or ends: the directory opens with the old one or the
new one, never with both, never with none.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import meles
import pytest
from fault_fs import MUTATING, FailNth, FaultDisk, Operation
from story import OPTIONS, Data
from tally import Tally

KEYS = (bytes(range(32)), b"another key, 24 bytes...")
KILLS = int(os.environ.get("MELES_KILLS", "100"))


def made(home: Path) -> Data:
    """An encrypted database, and what is in it."""
    data = {b"key %03d" % n: b"%d " % n * (400 if n % 5 == 0 else 5) for n in range(60)}
    with meles.open(home, encryption_key=KEYS[0], **OPTIONS) as db:
        with db.write_batch() as batch:
            for key, value in data.items():
                batch.set(key, value)
        db.flush()
    return data


def which_opens(home: Path, data: Data) -> int:
    """The one key that opens, with everything there."""
    opened = []
    for nth, key in enumerate(KEYS):
        try:
            with meles.open(home, mode="read_only", encryption_key=key, **OPTIONS) as db:
                assert dict(db.items()) == data
                opened.append(nth)
        except meles.EncryptionKeyError:
            continue
    assert len(opened) == 1, opened
    return opened[0]


@pytest.mark.parametrize("keep", [None, 0.0, 0.5])
def test_a_kill_or_power_cut_before_every_operation(
    shm_path: Path, tally: Tally, keep: float | None
) -> None:
    home, data = shm_path / "db", made(shm_path / "db")
    taken: list[Path] = []
    with FaultDisk().installed() as disk:

        def copy(operation: Operation) -> None:
            if operation.kind not in MUTATING:
                return
            taken.append(shm_path / str(len(taken)))
            if keep is None:
                shutil.copytree(home, taken[-1])
            else:
                disk.power_loss(str(home), str(taken[-1]), keep=keep, seed=len(taken))

        disk.plan = copy
        meles.rotate(home, old_key=KEYS[0], new_key=KEYS[1])
        disk.plan = None
    opened = [which_opens(path, data) for path in taken]
    tally("kill in rotation" if keep is None else "power cut in rotation", len(taken))
    assert len(opened) >= 5
    assert opened[0] == 0
    assert which_opens(home, data) == 1
    for path in taken:  # and it can be rotated again
        with meles.open(path, encryption_key=KEYS[which_opens(path, data)], **OPTIONS) as db:
            assert db.verify(values=True).ok


def test_whatever_call_fails(shm_path: Path) -> None:
    home, data, failed = shm_path / "db", made(shm_path / "db"), 0
    for nth in range(1, 40):
        now = which_opens(home, data)
        with FaultDisk(remember=False).installed() as disk:
            disk.plan = FailNth(nth, 5)
            try:
                meles.rotate(home, old_key=KEYS[now], new_key=KEYS[1 - now])
            except (OSError, meles.Error):
                failed += 1
            disk.plan = None
    assert failed >= 5


ROTATE = """
import sys, meles
path, *keys = sys.argv[1], *map(bytes.fromhex, sys.stdin.read().split())
print("ready", flush=True)
while True:
    meles.rotate(path, old_key=keys[0], new_key=keys[1])
    keys.reverse()
"""


def killed_while_rotating(home: Path, now: int, dice: random.Random) -> None:
    command = [sys.executable, "-P", "-c", ROTATE, str(home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"%s %s" % (KEYS[now].hex().encode(), KEYS[1 - now].hex().encode()))
        child.stdin.close()
        assert child.stdout.readline() == b"ready\n"
        try:
            child.wait(dice.uniform(0, 0.2))
        except subprocess.TimeoutExpired:
            os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL


def kills(home: Path, count: int) -> list[int]:
    data, dice = made(home), random.Random(7)
    found = [0]
    for _ in range(count):
        killed_while_rotating(home, found[-1], dice)
        found.append(which_opens(home, data))
    return found


def test_killed_while_rotating(shm_path: Path, tally: Tally) -> None:
    kills(shm_path / "db", 4)
    tally("kill in rotation", 4)


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_a_hundred_kills_while_rotating(shm_path: Path, tally: Tally) -> None:
    found = kills(shm_path / "db", max(100, KILLS))
    tally("kill in rotation", len(found) - 1)
    assert set(found) == {0, 1}
