"""What a worker inherits: exactly what it is given."""

import fcntl
import os
import signal
import sys

import pytest
from meles.workers.parent.spawn import (
    child_environment,
    high_fd,
    python_command,
    reopen_directory,
)


def test_secrets_and_settings_of_python_do_not_go_along():
    given = {
        "HOME": "/root", "LD_PRELOAD": "/shim.so", "MELES_ENCRYPTION_KEY": "canary",
        "MELES_MEMTABLE_SIZE": "1", "MELES_KERNEL": "python", "PYTHONSTARTUP": "/evil.py",
        "PYTHONINSPECT": "1", "PYTHONWARNINGS": "error", "PYTHONHOME": "/opt/python",
        "PYTHONBREAKPOINT": "evil.hook",
    }  # fmt: skip
    kept = child_environment(given)
    kept.pop("PYTHONPATH")
    assert kept == {
        "HOME": "/root", "LD_PRELOAD": "/shim.so", "MELES_KERNEL": "python",
        "PYTHONHOME": "/opt/python",
    }  # fmt: skip


def test_no_module_path_depends_on_where_anybody_stands():
    path = child_environment({"PYTHONPATH": ":.:lib:/opt/lib:../x"})["PYTHONPATH"].split(":")
    assert path[1:] == ["/opt/lib"]
    assert os.path.isfile(os.path.join(path[0], "meles", "__init__.py"))
    assert len(child_environment({})["PYTHONPATH"].split(":")) == 1


def test_the_command_is_isolated_from_the_current_directory():
    command = python_command()
    assert command[1:] == ("-P", "-m", "meles.workers.child.main")


def test_a_reopened_directory_does_not_share_a_lock(tmp_path):
    locked = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(locked, fcntl.LOCK_EX)
    copy = reopen_directory(locked)
    assert os.path.sameopenfile(locked, copy)
    fcntl.flock(copy, fcntl.LOCK_UN)  # on a shared description this would free it
    third = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held = True
    else:
        held = False
    for fd in (locked, copy, third):
        os.close(fd)
    assert held


def test_a_descriptor_is_moved_out_of_the_standard_streams():
    saved = os.dup(0)
    os.close(0)
    try:
        fd = os.open("/dev/null", os.O_RDONLY)
        assert fd == 0
        moved = high_fd(fd)
        assert moved > 2
        os.close(moved)
        again = os.open("/dev/null", os.O_RDONLY)
        assert again == 0, "the low one was closed"
        os.close(again)
    finally:
        os.dup2(saved, 0)
        os.close(saved)


BOOT = """
import os, sys
print("boots at", os.getpriority(os.PRIO_PROCESS, 0), flush=True)
from meles.workers.child.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("replaced", [False, True], ids=["first", "replacement"])
def test_a_worker_gives_way_with_all_its_threads(process_pool, until, caplog, replaced):
    """The first ones from the start; who replaces one that was well when it is ready."""
    pool = process_pool(command=[sys.executable, "-P", "-c", BOOT])
    ours = os.getpriority(os.PRIO_PROCESS, 0)

    def ready(other=None):
        (info,) = pool.infos()
        return info.pid if info.state == "idle" and info.pid != other else None

    pid = until(ready)
    if replaced:
        caplog.clear()
        os.kill(pid, signal.SIGKILL)
        pid = until(lambda first=pid: ready(first))
        until(lambda: f"boots at {ours}\n" in caplog.text, "the replacement's own word")
    threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    assert len(threads) > 1
    assert {os.getpriority(os.PRIO_PROCESS, each) for each in threads} == {min(ours + 5, 19)}
