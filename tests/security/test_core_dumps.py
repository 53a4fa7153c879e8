"""S11: a core dump of a process that was given a key holds no key and nothing that it stored."""

from __future__ import annotations

import resource
import secrets
import signal
import struct
import subprocess
import sys
from pathlib import Path

import meles
import pytest

KEY = bytes(range(32))
MEMORY = 0x63  # private and shared memory of no file, and in huge pages: core(5)
ALL = 0x1FF
REGISTER = 16
PT_LOAD = 1
linux = pytest.mark.skipif(
    not Path("/proc/self/coredump_filter").exists(), reason="no /proc/self/coredump_filter"
)

# What it must not show comes over standard input: the command line is in every core dump.
CRASHES = """
import os, resource, sys
import meles
path, where, workers = sys.argv[1:]
key, canary = (bytes.fromhex(line) for line in sys.stdin)
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
db = meles.open(path, encryption_key=key, workers=workers, value_threshold=500)
for data_key in db._engine.store.dirs.tables.keys.keys.values():
    print(data_key.secret.hex(), flush=True)
for n in range(300):
    db.set(canary + b" key %d" % n, canary * (20 if n % 3 else 2))
db.flush()
for n in range(300, 600):
    db.set(canary + b" key %d" % n, canary * (20 if n % 3 else 2))
kept = list(db.items())
assert len(kept) == 600
os.chdir(where)
os.abort()
"""


def why_no_core() -> str | None:
    """Why a core dump cannot be found here; None: it can."""
    try:
        pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    except OSError as error:
        return f"no core dumps: {error}"
    if pattern.startswith("|") or "/" in pattern or not pattern:
        return f"core dumps go elsewhere: core_pattern is {pattern!r}"
    if 0 <= resource.getrlimit(resource.RLIMIT_CORE)[1] < 1 << 30:
        return "core dumps are limited: ulimit -H -c"
    return None


def memory_in(core: bytes) -> bytes:
    """The memory in a core dump: all of it but the notes, which hold registers and names."""
    table, count = struct.unpack_from("<Q", core, 32)[0], struct.unpack_from("<H", core, 56)[0]
    segments = [struct.unpack_from("<IIQQQQ", core, table + 56 * n) for n in range(count)]
    return b"".join(core[at : at + size] for kind, _, at, _, _, size in segments if kind == PT_LOAD)


@pytest.mark.skipif(sys.byteorder == "big" or sys.maxsize < 1 << 32, reason="another kind of ELF")
@pytest.mark.parametrize("workers", ["thread", "process"])
def test_a_core_dump_holds_no_key_and_nothing_stored(tmp_path: Path, workers: str) -> None:
    reason = why_no_core()
    if reason is not None:
        pytest.skip(reason)
    key, canary = secrets.token_bytes(32), secrets.token_bytes(64)
    where = tmp_path / "crashed"
    where.mkdir()
    command = [sys.executable, "-P", "-c", CRASHES, str(tmp_path / "db"), str(where), workers]
    done = subprocess.run(
        command, input=f"{key.hex()}\n{canary.hex()}\n", capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGABRT, done.stderr
    data_keys = [bytes.fromhex(line) for line in done.stdout.split()]
    assert len(data_keys) == 1
    [core] = where.iterdir()
    content = core.read_bytes()
    core.unlink()
    assert content.startswith(b"\x7fELF")
    assert b"cryptography" in content  # the names of mapped files: it is the dump of that process
    for secret in (key, canary, *data_keys):
        for form in (secret, secret.hex().encode()):
            assert form not in content
    memory = memory_in(content)
    assert len(memory) > 4096
    for secret in (key, canary, *data_keys):  # a register may have some bytes of what was copied
        for at in range(0, len(secret), REGISTER):
            assert secret[at : at + REGISTER] not in memory


PRELUDE = """
import sys
import meles
from click.testing import CliRunner
from meles.engine.cli.main import commands
home = sys.argv[1]
path, old, new = home + "/db", home + "/old", home + "/new"
key = bytes(range(32))
def filtered():
    with open("/proc/self/coredump_filter") as file:
        return int(file.read(), 16)
with open("/proc/self/coredump_filter", "w") as file:
    file.write("0x1ff")
"""
USES = {
    "own": "db = meles.open(path, encryption_key=key, workers='inline')",
    "a new one": "db = meles.open(home + '/other', encryption_key=key, workers='inline')",
    "read_only": "db = meles.open(path, encryption_key=key, mode='read_only')",
    "memory": "db = meles.open(None, mode='memory', encryption_key=key, workers='inline')",
    "doctor": "meles.doctor(path, encryption_key=key)",
    "rotate": "meles.rotate(path, old_key=key, new_key=bytes(16))",
    "a first key": "meles.rotate(home + '/plain', new_key=key)",
    "meles get": "assert CliRunner().invoke(commands,"
    " ['get', path, 'k', '--key-file', old]).exit_code == 0",
    "meles rotate": "assert CliRunner().invoke(commands,"
    " ['rotate', path, '--old-key-file', old, '--new-key-file', new]).exit_code == 0",
    "another key": """
try:
    meles.open(path, encryption_key=bytes(32))
except meles.EncryptionKeyError:
    pass
""",
}


def filters(home: Path, use: str) -> list[int]:
    """The filter of a process after `use`, and once the database is closed."""
    for name, key in (("db", KEY), ("plain", None)):
        with meles.open(home / name, encryption_key=key, workers="inline") as db:
            db[b"k"] = b"v"
    (home / "old").write_bytes(KEY)
    (home / "new").write_bytes(b"k" * 16)
    after = "\nprint(filtered())\nif 'db' in globals():\n    db.close()\nprint(filtered())\n"
    command = [sys.executable, "-P", "-c", PRELUDE + use + after, str(home)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@linux
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_whoever_uses_a_key_leaves_memory_out_of_core_dumps(tmp_path: Path, use: str) -> None:
    """For good, since keys cannot be wiped; what else the application asked for stays."""
    assert filters(tmp_path, use) == [ALL & ~MEMORY] * 2


@linux
def test_without_a_key_core_dumps_are_the_application_s_to_say(tmp_path: Path) -> None:
    use = "db = meles.open(home + '/plain', workers='inline')"
    assert filters(tmp_path, use) == [ALL] * 2


@linux
def test_debuggers_and_profilers_go_on_working(tmp_path: Path) -> None:
    """The process stays dumpable: that, and no more, is what attaching to it takes."""
    use = USES["own"] + "\nimport ctypes\nprint(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    assert filters(tmp_path, use)[0] == 1
