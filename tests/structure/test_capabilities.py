"""Who may do what: processes, files, clocks, code from data."""

from __future__ import annotations

import pytest
from tree_rules import CAPABILITIES, Module, capability_faults, modules

MODULES = modules()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_uses_what_it_may(module: Module) -> None:
    assert list(capability_faults(module)) == []


def test_every_exception_is_used() -> None:
    """An exception that nothing needs any more is a hole."""
    names = {module.name: module for module in MODULES}
    for rule in CAPABILITIES:
        for part in rule.only:
            assert part in names, part
            if not names[part].is_package:
                bare = Module("somewhere.else", names[part].text)
                assert any(rule.why in fault for fault in capability_faults(bare)), (part, rule.why)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("workers.parent.crew", "import subprocess"),
        ("engine.store", "from subprocess import Popen"),
        ("supervisor", "import os\nos.fork()"),
        ("supervisor", "from os import system"),
        ("engine.log.writer", "import mmap\nm = mmap.mmap(3, 4)"),
        ("engine.log.writer", "from mmap import mmap\nm = mmap(3, 4)"),
        ("engine.log.writer", "import fcntl"),
        ("engine.table.builder", "import os\nos.fsync(3)"),
        ("engine.table.builder", "import os as system\nsystem.rename('a', 'b')"),
        ("engine.table.builder", "from os import unlink as remove"),
        ("engine.table.builder", "import os\nfd = os.open('a', 0)"),
        ("engine.table.builder", "file = open('a', 'wb')"),
        ("workers.child.loop", "import pickle"),
        ("engine.jobs", "from marshal import loads"),
        ("engine.jobs", "value = eval('1')"),
        ("engine.jobs", "exec('1')"),
        ("engine.jobs", "run = exec"),
        ("workers.parent.pool", "import multiprocessing"),
        ("workers.parent.pool", "from multiprocessing.connection import Connection"),
        ("workers.parent.pool", "import multiprocessing_logging"),
        ("engine.writing.writer", "import time\nnow = time.time()"),
        ("engine.writing.writer", "from time import time"),
        ("engine.writing.writer", "clock = __import__('time')"),
        ("engine.writing.writer", "from datetime import datetime\nnow = datetime.now()"),
        ("workers.parent.crew", "import time\ntime.sleep(1)"),
        ("workers.wire.framing", "import os"),
        ("workers.wire.framing", "import socket"),
        ("workers.wire.framing", "import select\nselect.poll()"),
        ("workers.child.loop", "import msgpack"),
        ("engine.writing.writer", "print('here')"),
    ],
)
def test_refuses(name: str, text: str) -> None:
    assert list(capability_faults(Module(name, text))) != []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("engine.log.reader", "import mmap\nBuffer = mmap.mmap | bytes"),
        ("engine.writing.writer", "import time\nnow = time.monotonic()"),
        ("engine.table.reader", "def f(directory):\n    return directory.open('a')"),
        ("engine.options", "import re\nX = re.compile('a')"),
        ("workers.wire.log_frames", "import select\nX = select.PIPE_BUF"),
        ("engine.fs.files", "import os\nos.open('a', os.O_RDONLY)"),
    ],
)
def test_accepts(name: str, text: str) -> None:
    assert list(capability_faults(Module(name, text))) == []
