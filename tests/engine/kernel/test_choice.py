"""Which kernel MELES_KERNEL selects, and what it refuses."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import meles.engine.kernel as kernel
import pytest
from meles.engine.errors import ConfigError

BUILT = importlib.util.find_spec("meles.engine.kernel._native") is not None
SHOW = "import meles.engine.kernel as k; print(k.KIND)"


def run(code: str, asked: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "MELES_KERNEL": asked}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_auto_takes_the_compiled_kernel_where_it_was_built() -> None:
    assert (kernel.choose({}) is not None) == BUILT
    assert (kernel.choose({"MELES_KERNEL": "auto"}) is not None) == BUILT


def test_python_is_plain_python() -> None:
    assert kernel.choose({"MELES_KERNEL": "python"}) is None


@pytest.mark.parametrize("asked", ["rust", ""])
def test_refused(asked: str) -> None:
    with pytest.raises(ConfigError, match="MELES_KERNEL"):
        kernel.choose({"MELES_KERNEL": asked})


@pytest.mark.parametrize("asked", ["python", "native", "auto"])
def test_the_variable_is_read_at_import(asked: str) -> None:
    done = run(SHOW, asked)
    if asked == "native" and not BUILT:
        assert done.returncode == 1
        assert "no compiled kernel" in done.stderr
    else:
        assert done.stdout.strip() == ("python" if asked == "python" or not BUILT else "native")


def test_native_is_an_error_where_it_was_not_built() -> None:
    hidden = "import sys; sys.modules['meles.engine.kernel._native'] = None\n" + SHOW
    done = run(hidden, "native")
    assert done.returncode == 1
    assert "no compiled kernel" in done.stderr
    assert run(hidden, "auto").stdout.strip() == "python"


def test_every_function_of_the_reference_is_exported_from_the_package() -> None:
    for name in kernel.__all__:
        assert hasattr(kernel, name)
