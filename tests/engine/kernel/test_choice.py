"""Which kernel MELES_KERNEL selects, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys

import meles.engine.kernel as kernel
import pytest
from meles.engine.errors import ConfigError


@pytest.mark.parametrize("environ", [{}, {"MELES_KERNEL": "auto"}, {"MELES_KERNEL": "python"}])
def test_python_is_what_there_is(environ: dict[str, str]) -> None:
    assert kernel.choose(environ) == "python"


@pytest.mark.parametrize("asked", ["native", "rust", ""])
def test_refused(asked: str) -> None:
    with pytest.raises(ConfigError, match="MELES_KERNEL"):
        kernel.choose({"MELES_KERNEL": asked})


def test_the_variable_is_read_at_import() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import meles.engine.kernel"],
        env={**os.environ, "MELES_KERNEL": "native"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no compiled kernel" in done.stderr


def test_every_function_of_the_reference_is_exported_from_the_package() -> None:
    for name in kernel.__all__:
        assert hasattr(kernel, name)
