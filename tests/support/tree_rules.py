"""Who may import whom, who may do what, how files must look: rules as data, and their checkers.

Rules of imports speak of dotted names below `meles`; a name covers itself and all below it. The
root package itself, which is the public API, is called `meles`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 500


class Layer(NamedTuple):
    """What a part may import besides itself; the longest `part` that covers a module counts."""

    part: str
    may: tuple[str, ...]
    why: str


class Never(NamedTuple):
    """What a part must not import, whatever its layer allows; `but` are exceptions below `part`."""

    part: str
    what: tuple[str, ...]
    why: str
    but: tuple[str, ...] = ()


class Capability(NamedTuple):
    """Names from outside the project that only some parts may use; `f()` is a call of f."""

    names: tuple[str, ...]
    only: tuple[str, ...]
    why: str


WORDS = ("engine.errors", "engine.ids")
CODEC = (*WORDS, "engine.kernel", "engine.codec")
FILES = (*CODEC, "engine.fs", "engine.crypt")
RECORDS = (*FILES, "engine.jobs", "engine.manifest.version")  # what jobs and the MANIFEST speak of

LAYERS = (
    Layer("engine.errors", (), "the leaf vocabulary: anything may import it"),
    Layer("engine.ids", (), "the leaf vocabulary: anything may import it"),
    Layer("engine.worker_info", (), "plain data of the public API"),
    Layer("engine.reports", ("engine.worker_info",), "plain data of the public API"),
    Layer("engine.kernel", ("engine.errors",), "its compiled twin takes buffers and numbers only"),
    Layer("engine.codec", (*WORDS, "engine.kernel"), "bytes in, bytes out: no file system"),
    Layer("engine.fs", (*WORDS, "engine.giving_way"), "knows files, not what is in them"),
    Layer("engine.crypt", (*CODEC, "engine.fs", "engine.clock"), "keys, and one file of them"),
    Layer("engine.crypt.file_cipher", (*WORDS, "engine.codec"), "bytes in, bytes out"),
    Layer("engine.option_checks", WORDS, "pure"),
    Layer("engine.memory_budget", (*WORDS, "engine.option_checks"), "pure"),
    Layer(
        "engine.options",
        (*WORDS, "engine.option_checks", "engine.memory_budget"),
        "pure but for reading one TOML file",
    ),
    Layer("engine.jobs", WORDS, "plain data that crosses a pipe"),
    Layer("engine.log", FILES, "one file format"),
    Layer("engine.manifest", FILES, "one file format and the picture it describes"),
    Layer("engine.manifest.version", WORDS, "an immutable value"),
    Layer("engine.manifest.edit", (*WORDS, "engine.manifest.version"), "an immutable value"),
    Layer("engine.table", (*RECORDS, "engine.giving_way"), "one file format"),
    Layer("engine.memtable", (*FILES, "engine.log"), "an index over one log"),
    Layer(
        "engine.memtable.flush",
        (*RECORDS, "engine.memtable", "engine.log", "engine.table", "engine.compaction.retention"),
        "the flush job",
    ),
    Layer("engine.vlog", RECORDS, "one file format"),
    Layer(
        "engine.vlog.relocate",
        (*RECORDS, "engine.vlog", "engine.table"),
        "the GC job: reads the pointers in the tables",
    ),
    Layer("engine.iterators", CODEC, "merging what it is given"),
    Layer(
        "engine.iterators.range_scan",
        (*CODEC, "engine.iterators", "engine.read_view", "engine.table"),
        "where a read view becomes sources to merge",
    ),
    Layer(
        "engine.compaction",
        (*WORDS, "engine.codec", "engine.options", "engine.jobs", "engine.manifest.version"),
        "deciding is pure: no file is opened to decide",
    ),
    *(
        Layer(
            f"engine.compaction.{module}",
            (*RECORDS, "engine.compaction", "engine.table", "engine.iterators"),
            "the compaction job: no MANIFEST, no deciding",
        )
        for module in ("execute", "merge_columns", "merge_native", "outputs")
    ),
    Layer(
        "engine.doctor.decide",
        (*WORDS, "engine.doctor.facts", "engine.fs.names", "engine.manifest.version"),
        "deciding is pure",
    ),
    Layer(
        "engine.backup",
        (*RECORDS, "engine.arguments", "engine.clock", "engine.engine", "engine.iterators",
         "engine.keys_of_directory", "engine.manifest", "engine.options", "engine.read_view",
         "engine.reports", "engine.run_job", "engine.table", "engine.vlog",
         "engine.writing.writer"),
        "reads a view, or fills an empty directory: no open database is changed",
    ),
    Layer("engine.backup.format", CODEC, "bytes in, bytes out"),
    Layer(
        "engine.backup.reading",
        (*CODEC, "engine.backup.format"),
        "reads what it is given: no path, no directory",
    ),
    Layer(
        "engine.backup.joining",
        (*CODEC, "engine.backup.format", "engine.backup.reading"),
        "deciding is pure",
    ),
    Layer("engine.stress", ("meles", *WORDS), "a user of the API, like the command line"),
    Layer("engine.cli", ("meles", *WORDS, "engine.options", "engine.reports"), "a user of the API"),
    Layer(
        "engine.cli.stress_verbs",
        ("meles", *WORDS, "engine.cli", "engine.stress"),
        "shows what the stress found",
    ),
    Layer(
        "engine.cli.feed_verbs",
        ("meles", *WORDS, "engine.cli", "engine.options", "engine.reports", "supervisor"),
        "the service takes its signals from the supervisor, which alone may catch them",
    ),
    Layer(
        "workers.wire",
        (*WORDS, "engine.jobs", "engine.codec.checksum", "engine.worker_info"),
        "plain data: both sides import it",
    ),
    Layer(
        "workers.parent",
        (*WORDS, "workers.wire", "engine.options", "engine.jobs", "engine.worker_info",
         "engine.reports", "engine.giving_way"),
        "policy and processes: it does no engine work",
    ),
    Layer(
        "workers.parent.inline_pool",
        (*WORDS, "workers", "engine.jobs", "engine.run_job", "engine.worker_info"),
        "runs jobs itself, on the calling thread",
    ),
    Layer(
        "workers.parent.thread_pool",
        (*WORDS, "workers", "engine.jobs", "engine.run_job", "engine.worker_info"),
        "runs jobs itself, on threads",
    ),
    Layer(
        "workers.parent.make_pool",
        (*WORDS, "workers.parent", "engine.options", "engine.jobs", "engine.run_job"),
        "hands the directories to whichever pool it makes",
    ),
)  # fmt: skip

NEVER = (
    Never(
        "engine", ("workers", "supervisor"),
        "the engine knows no process: it is handed a `JobPool`",
        but=("engine.cli.feed_verbs",),
    ),
    Never(
        "engine", ("meles",), "the API is made of the engine, not vice versa",
        but=("engine.cli", "engine.stress"),
    ),
    Never(
        "workers.child",
        ("workers.parent", "supervisor", "meles", "engine.db", "engine.store", "engine.writing",
         "engine.recovery", "engine.opening", "engine.manifest.manifest_file",
         "engine.crypt.registry",
         "engine.fs.dir_lock"),
        "a worker computes; the supervisor owns whatever lasts",
    ),
    Never("workers.parent", ("workers.child",), "a worker is started by name, over exec"),
    Never("supervisor", ("workers.child",), "a worker is started by name, over exec"),
    Never("meles", ("workers",), "`import meles` loads no worker"),
)  # fmt: skip

CHANGES_FILES = (
    "mmap.mmap()", "fcntl", "os.fsync", "os.fdatasync", "os.sync", "os.open", "os.rename",
    "os.renames", "os.replace", "os.unlink", "os.remove", "os.removedirs", "os.rmdir", "os.mkdir",
    "os.makedirs", "os.link", "os.symlink", "os.truncate", "os.ftruncate", "os.pwrite",
    "os.pwritev", "os.posix_fallocate", "os.chmod", "os.fchmod", "builtins.open()", "shutil",
    "tempfile",
)  # fmt: skip
CLOCK = ("time.time", "time.time_ns", "datetime.datetime.now", "datetime.datetime.utcnow")

CAPABILITIES = (
    Capability(
        ("subprocess", "os.posix_spawn", "os.posix_spawnp"),
        (
            "workers.parent.spawn",
            "engine.stress.rounds",  # starts the loads it kills
        ),
        "one place knows what a child inherits",
    ),
    Capability(
        ("os.fork", "os.forkpty", "os.system", "os.popen", "os.execv", "os.execve", "pty"),
        (),
        "fork copies threads and locks; a shell has no place here",
    ),
    Capability(
        CHANGES_FILES,
        (
            "engine.fs",
            "engine.stress.ledger",  # appends to a file outside the database
            "engine.cli.stress_verbs",  # removes that file
            "engine.cli.main",  # points a broken standard output at /dev/null
            "engine.cli.follow",  # opens logs of the user's, for reading
            "engine.cli.sources",  # opens inputs of the user's, for reading
            "engine.cli.backup_files",  # writes a backup to a file of the user's
            "engine.opening",  # makes and removes the private directory of mode="memory"
            "supervisor",  # the same
            "workers.parent.spawn",  # duplicates a directory descriptor for a worker
        ),
        "one place syncs, renames, unlinks, maps and sets modes; tests put faults under it",
    ),
    Capability(
        ("pickle", "marshal", "shelve", "dill", "multiprocessing", "builtins.eval",
         "builtins.exec", "builtins.compile", "builtins.__import__"),
        (),
        "bytes from a file or a pipe never become code",
    ),
    Capability(
        ("multiprocessing_logging",),
        ("workers.child.log_pipe",),
        "its handler is given a transport of ours, at one place",
    ),
    Capability(
        CLOCK,
        (
            "engine.clock",  # expiry, and when a file was made
            "engine.fs.dir_lock",  # since when, for a human
        ),
        "the wall clock jumps: deadlines and intervals use time.monotonic",
    ),
    Capability(
        ("time.sleep",),
        (
            "engine.fs.dir_lock",  # flock has no timed form
            "engine.db",  # back-off between attempts of a transaction
            "engine.writing.brake",  # the delay is the purpose
            "engine.giving_way",  # so is the pause
            "engine.cli.care_verbs",  # nothing announces that the workers have booted
        ),
        "waiting is done on events and descriptors",
    ),
    Capability(
        ("os", "io", "socket", "selectors", "asyncio", "threading", "select.select", "select.poll",
         "select.epoll", "builtins.open()"),
        ("engine", "supervisor", "meles", "configs", "workers.child", "workers.parent"),
        "workers.wire turns bytes into messages and touches no descriptor",
    ),
    Capability(
        ("msgpack",),
        ("engine.manifest", "engine.table", "workers.wire"),
        "three formats hold msgpack, and each bounds what it decodes",
    ),
    Capability(
        ("builtins.print",),
        ("engine.cli", "workers.child.channel"),
        "a library is silent; the exceptions are the command line and a worker's last words",
    ),
)  # fmt: skip

NO_PACKAGE = {
    "workers/child/bootstrap": "put on a worker's module path, so it is no package itself",
    "workers/child/bootstrap/meles": "stands for `meles` in a worker; installed as package data",
}
BANNED = {  # in classes of one character, so that this file does not have them itself
    r"\b(?:TOD[O]|FIXM[E]|XX[X])\b": "do it, or say what is so and why",
    r"(?i)\bhac[k](?:s|y|ed|ish)?\b": "say what it does and why it must",
    r"/(?:hom[e]|User[s]|roo[t])/[\w.-]+": "a path of somebody's machine",
}
NOT_OURS = {
    ".git", ".venv", ".mypy_pkg", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis",
    ".asan", "__pycache__", "build", "dist", "run-data", "results",
}  # fmt: skip
TEXTS = {".py", ".pyi", ".pyx", ".c", ".h", ".md", ".toml", ".yml", ".yaml", ".sh", ".txt", ""}


@dataclass(frozen=True)
class Module:
    """A module by its dotted name below `meles` (`meles` for the root), and its text."""

    name: str
    text: str
    is_package: bool = False

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.name)

    @cached_property
    def _bindings(self) -> tuple[dict[str, str], set[str]]:
        """Local names of what is imported, and everything imported, by its absolute dotted name."""
        local, found = {}, set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    found.add(alias.name)
                    local[alias.asname or alias.name.split(".")[0]] = (
                        alias.name if alias.asname else alias.name.split(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    name = f"{'.' * node.level}{node.module or ''}.{alias.name}"
                    found.add(name)
                    local[alias.asname or alias.name] = name
        return local, found

    @cached_property
    def imports(self) -> set[str]:
        """What it imports of ours, below `meles`; the root's own names count as `meles`."""
        found = set()
        for name in self._bindings[1]:
            first, _, rest = name.partition(".")
            if first == "meles":
                ours = rest.split(".")[0] in ("engine", "workers", "supervisor", "configs")
                found.add(rest if ours else "meles")
        return found

    @property
    def bare_imports(self) -> set[str]:
        """Imports of ours that do not begin with `meles`."""
        firsts = ("engine", "workers", "supervisor", "configs", "")
        return {name for name in self._bindings[1] if name.split(".")[0] in firsts}

    @cached_property
    def uses(self) -> set[str]:
        """Foreign names it imports or reaches into; `name()` for those it calls."""
        local, found = self._bindings[0], set(self._bindings[1])
        for node in ast.walk(self.tree):
            called = isinstance(node, ast.Call)
            if name := _dotted(node.func if isinstance(node, ast.Call) else node):
                first, _, rest = name.partition(".")
                base = local.get(first, f"builtins.{first}")
                found.add(f"{base}.{rest}".rstrip(".") + "()" * called)
        return found


def _dotted(node: ast.AST) -> str | None:
    """`a.b.c` of such an expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := _dotted(node.value)):
        return f"{base}.{node.attr}"
    return None


def covers(part: str, name: str) -> bool:
    return name == part or name.startswith(part + ".")


def import_faults(module: Module) -> Iterator[str]:
    """What of a module's imports is against `LAYERS` and `NEVER`."""
    layers = [layer for layer in LAYERS if covers(layer.part, module.name)]
    layer = max(layers, key=lambda layer: len(layer.part), default=None)
    for name in sorted(module.imports):
        if layer is not None and not any(covers(may, name) for may in (*layer.may, layer.part)):
            yield f"{module.name} imports {name}: {layer.why}"
        for rule in NEVER:
            forbidden = any(covers(what, name) for what in rule.what)
            excepted = any(covers(part, module.name) for part in rule.but)
            if covers(rule.part, module.name) and forbidden and not excepted:
                yield f"{module.name} imports {name}: {rule.why}"
    for name in sorted(module.bare_imports):
        yield f"{module.name} imports {name}: imports are absolute, from `meles` down"


def capability_faults(module: Module) -> Iterator[str]:
    """What a module uses against `CAPABILITIES`."""
    for rule in CAPABILITIES:
        if any(covers(part, module.name) for part in rule.only):
            continue
        for name in rule.names:
            used = {u for u in module.uses if u == name or u.startswith((name + ".", name + "("))}
            if used:
                yield f"{module.name} uses {min(used)}: {rule.why}"


def shape_faults(module: Module) -> Iterator[str]:
    """What is wrong with a module's size and docstring."""
    lines = module.text.count("\n")
    if lines > MAX_LINES:
        yield f"{module.name} has {lines} lines: more than one job, or a stated reason"
    docstring = ast.get_docstring(module.tree)
    if not docstring:
        yield f"{module.name} has no docstring"
    elif "Runs in:" not in docstring and not module.is_package:
        yield f"{module.name} does not say in which process it runs (`Runs in:`)"


def text_faults(where: str, text: str, root: str = "") -> Iterator[str]:
    """Banned words and paths; `root` is this checkout's own, when it is telling enough."""
    for pattern, why in BANNED.items():
        for match in re.finditer(pattern, text):
            line = text.count("\n", 0, match.start()) + 1
            yield f"{where}:{line} has {match[0]!r}: {why}"
    if root.count("/") > 1 and root in text:
        yield f"{where} names the path of this checkout"


def modules(root: Path = ROOT) -> list[Module]:
    """Every module of the package."""
    found = []
    for path in (*root.glob("*.py"), *(p for top in ("engine", "workers", "configs")
                                       for p in (root / top).rglob("*.py"))):  # fmt: skip
        relative = path.relative_to(root)
        if relative.parent.as_posix() in NO_PACKAGE:
            continue
        parts = relative.with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts) or "meles"
        found.append(Module(name, path.read_text(encoding="utf-8"), is_package))
    return found


def texts(root: Path = ROOT) -> Iterator[Path]:
    """Every text file of the project, tests and documents included."""
    for path in sorted(root.iterdir()):
        if path.name in NOT_OURS or path.name.endswith(".egg-info") or path.is_symlink():
            continue
        if path.is_dir():
            yield from texts(path)
        elif path.suffix in TEXTS:
            yield path
