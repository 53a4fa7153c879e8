"""Processes and pipes: nothing listens, nothing of a key or value is said, bombs stay small."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path

import meles
import psutil
import pytest
from fault_fs import FailNth, FaultDisk
from story import OPTIONS, Story
from waiting import wait_until

CANARY = b"CANARY-7f3a9c"


# -- S4: nothing listens -------------------------------------------------------------------------


def test_nothing_listens_and_nothing_has_a_socket(tmp_path: Path) -> None:
    unix = Path("/proc/net/unix").read_text()
    with meles.open(tmp_path / "db", sync="none") as db:
        wait_until(lambda: all(w.state == "idle" for w in db.workers()))
        for worker in db.workers():
            assert worker.pid is not None
            links = [
                os.readlink(f"/proc/{worker.pid}/fd/{fd}")
                for fd in os.listdir(f"/proc/{worker.pid}/fd")
            ]
            assert not [link for link in links if link.startswith("socket:")]
            assert psutil.Process(worker.pid).net_connections("all") == []
        mine = {line.split()[-1] for line in unix.splitlines()}
        new = {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()} - mine
        assert not [name for name in new if "meles" in name or str(tmp_path) in name]


# -- S5: bombs -----------------------------------------------------------------------------------

BOMB = """
import resource, sys
from meles.workers.wire.framing import MAX_PAYLOAD, FrameDecoder, HEADER, _checksum, decode_payload
from meles.workers.wire.errors import RemoteProtocolError
payload = {payload}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    FrameDecoder().feed(HEADER.pack(len(payload), _checksum(len(payload), payload)) + payload)
except RemoteProtocolError:
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.parametrize(
    "payload",
    [
        r"b'\xdd' + (MAX_PAYLOAD - 5).to_bytes(4, 'big') + b'\x80' * (MAX_PAYLOAD - 5)",
        r"b'\xdc\xff\xff' + b'\x80' * 65535",
        r"b'\x91' * MAX_PAYLOAD",
        r"b'\xdf\xff\xff\xff\xff' + b'\xa1a\x80' * 300000",
        r"b'\xc6\xff\xff\xff\xff'",
    ],
)
def test_a_bomb_takes_no_more_than_64_mib(payload: str) -> None:
    script = BOMB.format(payload=payload)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert int(done.stdout) < 64


# -- S13: no key or value in what is said --------------------------------------------------------


class Canaries(Story):
    """The story with keys and values that can be found again."""

    def commit(self, db: meles.DB, changes: dict[bytes, bytes | None]) -> None:
        super().commit(
            db,
            {
                CANARY + key: None if value is None else CANARY * (len(value) // len(CANARY) + 1)
                for key, value in changes.items()
            },
        )


def test_logs_and_errors_hold_no_key_and_no_value(
    shm_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While calls fail, files are damaged, and the doctor looks."""
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    for n in range(3, 200, 12):
        home = shm_path / str(n)
        story = Canaries()
        with FaultDisk(remember=False).installed() as disk:
            disk.plan = FailNth(n, 5)
            story.tell(home)
            disk.plan = None
        said += ["".join(traceback.format_exception(error)) for error in story.errors]
        for path in list(home.glob("*.sst"))[:1]:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
            found = meles.doctor(home, **OPTIONS)
            said += [found.problem, *(str(finding) for finding in found.findings)]
            try:
                with meles.open(home, mode="read_only", **OPTIONS) as db:
                    said += db.verify(values=True).problems
                    dict(db.items())
            except meles.Error as error:
                said.append(str(error))
    said += [record.getMessage() for record in caplog.records]
    assert len(said) > 50
    for text in said:
        assert CANARY.decode() not in text
        assert CANARY.hex() not in text
