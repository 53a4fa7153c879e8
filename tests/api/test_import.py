"""`import meles` starts nothing, logs nothing, and loads no engine and no worker."""

from __future__ import annotations

import json
import subprocess
import sys

import meles
import pytest

LOOK = """
import json, logging, os, sys, threading
before = threading.enumerate(), len(os.listdir("/proc/self/fd"))
import meles
loaded = [name for name in sys.modules if name.split(".")[0] == "meles"]
after = threading.enumerate(), len(os.listdir("/proc/self/fd"))
json.dump([loaded, before[0] == after[0], after[1] - before[1],
           [type(h).__name__ for h in logging.getLogger("meles").handlers],
           len(logging.getLogger().handlers), os.listdir(".")], sys.stdout)
"""


def test_importing_starts_nothing_and_loads_no_engine(tmp_path: object) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", LOOK], capture_output=True, check=True, cwd=str(tmp_path)
    )
    loaded, same_threads, more_descriptors, handlers, root_handlers, files = json.loads(ran.stdout)
    allowed = {"meles", "meles.engine", "meles.engine.errors"}
    assert set(loaded) == allowed
    assert (same_threads, more_descriptors) == (True, 0)
    assert (handlers, root_handlers) == (["NullHandler"], 0)
    assert files == []
    assert ran.stderr == b""


def test_everything_public_is_there() -> None:
    for name in meles.__all__:
        assert getattr(meles, name) is not None, name
    assert set(meles.__all__) <= set(dir(meles)) | set(meles.__all__)
    assert meles.__version__


@pytest.mark.parametrize(
    "name",
    [
        "open", "Options", "DB", "Txn", "Item", "WriteBatch", "Sequence", "MergeOperator",
        "Change", "GCReport", "VerifyReport", "CloseReport", "Stage", "Stats", "Health",
        "WorkerInfo", "Size",
    ],
)  # fmt: skip
def test_the_names_of_the_contract(name: str) -> None:
    assert name in meles.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        meles.nothing_of_that_name  # noqa: B018
