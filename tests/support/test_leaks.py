"""The guard finds what a test leaves behind, and only that."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import leaks
import pytest
from leaks import Held, assert_nothing_left
from waiting import wait_until


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "_GRACE_SECONDS", 0.0)


def test_nothing_left_is_fine() -> None:
    before = Held.now()
    os.close(os.dup(0))
    assert_nothing_left(before)


def test_a_descriptor_is_found() -> None:
    before = Held.now()
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        with pytest.raises(AssertionError, match=f"descriptor {fd} on /dev/null"):
            assert_nothing_left(before)
    finally:
        os.close(fd)


def test_a_thread_of_ours_is_found_and_others_are_not() -> None:
    before = Held.now()
    go = threading.Event()
    ours = threading.Thread(target=go.wait, name="meles-flusher", daemon=True)
    others = threading.Thread(target=go.wait, name="application", daemon=True)
    ours.start()
    others.start()
    try:
        with pytest.raises(AssertionError, match=r"left behind: thread meles-flusher$"):
            assert_nothing_left(before)
    finally:
        go.set()
        ours.join()
        others.join()


def test_a_child_is_found_until_it_is_reaped() -> None:
    before = Held.now()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        with pytest.raises(AssertionError, match=f"process .*pid={child.pid}"):
            assert_nothing_left(before)
        assert child.stdin is not None
        child.stdin.close()
    assert_nothing_left(before)


def test_waiting_gives_the_first_true_result_or_gives_up() -> None:
    results = iter([0, None, 7, 8])
    assert wait_until(lambda: next(results)) == 7
    with pytest.raises(AssertionError, match="the moon did not come true in 0 s: ''"):
        wait_until(lambda: "", seconds=0, what="the moon")


def test_a_marked_test_that_leaks_fails_and_others_do_not(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_leaky.py").write_text(
        "import os, leaks, pytest\n"
        "leaks._GRACE_SECONDS = 0\n"
        "@pytest.mark.leak_guard\n"
        "def test_guarded(): os.dup(0)\n"
        "@pytest.mark.leak_guard\n"
        "def test_clean(): pass\n"
        "def test_unguarded(): os.dup(0)\n"
    )
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(tests)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "3 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert "ERROR test_leaky.py::test_guarded" in done.stdout
