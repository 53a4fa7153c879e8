"""Who may import whom."""

from __future__ import annotations

import pytest
from tree_rules import LAYERS, NEVER, Module, import_faults, modules

MODULES = modules()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_imports_what_its_layer_may(module: Module) -> None:
    assert list(import_faults(module)) == []


def test_every_rule_is_about_something_that_exists() -> None:
    names = {module.name for module in MODULES}
    parts = {rule.part for rule in (*LAYERS, *NEVER)} | {what for r in NEVER for what in r.what}
    parts |= {may for layer in LAYERS for may in layer.may}
    assert sorted(parts - names) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("engine.errors", "from meles.engine.ids import MAX_KEY_BYTES"),
        ("engine.ids", "import meles.engine.errors"),
        ("engine.kernel.reference", "from meles.engine.codec.columns import Columns"),
        ("engine.codec.header", "from meles.engine.fs.files import File"),
        ("engine.codec.header", "from meles.engine.fs import files"),
        ("engine.codec.header", "import meles.engine.fs.files as f"),
        ("engine.fs.files", "from meles.engine.codec.header import FileHeader"),
        ("engine.fs.files", "from meles.engine.crypt.keys import KeyRing"),
        ("workers.child.boot", "from meles.engine.crypt.registry import read_registry"),
        ("engine.jobs", "from meles.engine.table.reader import Table"),
        ("engine.log.reader", "from meles.engine.table.reader import Table"),
        ("engine.manifest.version", "from meles.engine.fs.files import File"),
        ("engine.manifest.edit", "from meles.engine.manifest.manifest_file import ManifestFile"),
        ("engine.table.reader", "from meles.engine.vlog.reader import ValueLogFile"),
        ("engine.memtable.memtable", "from meles.engine.table.reader import Table"),
        ("engine.vlog.reader", "from meles.engine.table.reader import Table"),
        ("engine.compaction.picker", "from meles.engine.fs.files import Directory"),
        ("engine.compaction.execute", "from meles.engine.manifest.manifest_file import x"),
        ("engine.iterators.merge", "from meles.engine.read_view import ReadView"),
        ("engine.store", "from meles.workers.wire.messages import JobRequest"),
        ("engine.background.scheduler", "def f():\n    from meles.supervisor import open_db"),
        ("engine.db", "import meles"),
        ("engine.db", "from meles import open"),
        ("engine.cli.main", "from meles.engine.store import Store"),
        ("engine.cli.main", "from meles.supervisor import open_db"),
        ("engine.cli.main", "from meles import supervisor"),
        ("workers.wire.messages", "from meles.engine.fs.files import File"),
        ("workers.child.loop", "from meles.workers.parent.restart import Restart"),
        ("workers.child.loop", "from meles.engine.db import DB"),
        ("workers.child.loop", "from meles.engine.manifest.manifest_file import ManifestFile"),
        ("workers.child.loop", "from meles.engine.fs.dir_lock import DirectoryLock"),
        ("workers.parent.crew", "from meles.workers.child.main import main"),
        ("workers.parent.crew", "from meles.engine.table.reader import Table"),
        ("supervisor", "from meles.workers.child.main import main"),
        ("meles", "from meles.workers.parent.stages import run_stages"),
        ("engine.store", "import engine.fs.files"),
        ("engine.store", "from workers.wire import messages"),
        ("engine.store", "import supervisor"),
        ("engine.store", "from .fs import files"),
        ("engine.writing.value_sink", "from . import writer"),
    ],
)
def test_refuses(name: str, text: str) -> None:
    assert list(import_faults(Module(name, text))) != []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("engine.codec.header", "import struct\nfrom meles.engine.errors import Error"),
        ("engine.fs.dir_lock", "from meles.engine.fs.files import Directory"),
        ("engine.vlog.relocate", "from meles.engine.table.reader import Table"),
        ("engine.vlog.relocate", "from meles.engine.vlog.layout import ENTRY"),
        ("engine.manifest.manifest_file", "from meles.engine.manifest.edit import Edit"),
        ("engine.cli.main", "import meles\nfrom meles import open\nimport click"),
        ("workers.parent.inline_pool", "from meles.workers.parent.protocol import Pool"),
        ("supervisor", "from meles.engine.store import Store\nfrom meles.workers.parent import x"),
    ],
)
def test_accepts(name: str, text: str) -> None:
    assert list(import_faults(Module(name, text))) == []
