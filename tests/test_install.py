"""Installing where nothing compiles: the engine is there, in plain Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHIPPED = (
    "pyproject.toml", "README.md", "__init__.py", "py.typed", "supervisor.py", "engine", "workers",
    "configs",
)  # fmt: skip
TRY_IT = """
import sys, meles, meles.engine.kernel as kernel
with meles.open(sys.argv[1], memtable_size=1 << 16) as db:
    for number in range(3000):
        db.set(b"%05d" % number, b"v" * 100)
with meles.open(sys.argv[1]) as db:
    assert len(list(db.keys())) == 3000
    assert db.get(b"02999") == b"v" * 100
print(kernel.KIND)
"""


def run(*command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "MELES_KERNEL"}
    return subprocess.run(
        list(map(str, command)), env={**kept, **environ}, capture_output=True, text=True,
        check=False, timeout=600,
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_without_a_compiler(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("*.so", "_native.c", "__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    assert run(sys.executable, "-m", "venv", tmp_path / "venv").returncode == 0
    python = tmp_path / "venv" / "bin" / "python"
    done = run(python, "-m", "pip", "install", source, CC="/bin/false")
    assert done.returncode == 0, done.stderr
    tried = run(python, "-P", "-c", TRY_IT, tmp_path / "db")
    assert (tried.stdout, tried.returncode) == ("python\n", 0), tried.stderr
    refused = run(python, "-P", "-c", TRY_IT, tmp_path / "db", MELES_KERNEL="native")
    assert refused.returncode == 1
    assert "no compiled kernel" in refused.stderr
