"""The value log as a reader sees it: which file holds a logical file's values.

Runs in: supervisor.
Invariants: (1) a view never changes, the store replaces it by one assignment; (2) it keeps its
files readable for as long as it lives, and no longer: it is in no cycle of references, so files
that are gone do not wait for the collector of those; (3) an address it cannot resolve is damage,
never an absent value.
Fails with: `CorruptionError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from meles.engine.codec.entry import POINTER_BYTES
from meles.engine.errors import CorruptionError, InvariantError
from meles.engine.fs.files import Directory
from meles.engine.fs.names import Kind, file_name
from meles.engine.kernel import NATIVE
from meles.engine.manifest.version import VlogMeta
from meles.engine.vlog.layout import KIND_FILE, KIND_VALUE
from meles.engine.vlog.reader import ValueLogFile

Fetch = Callable[[bytes, int | None], bytes]
_ID_BYTES = 4  # of an encoded pointer: the logical file id


class ValueSource(Protocol):
    """A physical file that values are read from: the active one, a sealed one, or a lost one."""

    @property
    def file_id(self) -> int: ...
    @property
    def logical(self) -> tuple[int, ...]: ...
    def fetch(self, pointer: bytes, version: int | None = None) -> bytes: ...
    def compiled(self) -> Sequence[Any]:
        """What the compiled kernel reads it with; nothing, if `fetch` is the only way."""
        ...

    def close(self) -> None: ...


class UnreadableFile:
    """Stands for a file that could not be opened: asking it for a value says why."""

    __slots__ = ("error", "file_id", "logical")

    def __init__(self, meta: VlogMeta, error: CorruptionError) -> None:
        self.file_id = meta.id
        self.logical = meta.logical
        self.error = error

    def fetch(self, pointer: bytes, version: int | None = None) -> bytes:  # noqa: ARG002
        """Raises the error met when the file was opened."""
        cause = self.error
        raise CorruptionError(
            "the value's file cannot be read", path=cause.path, offset=cause.offset, kind=cause.kind
        ) from cause

    def compiled(self) -> Sequence[Any]:
        return ()

    def close(self) -> None:
        """Nothing is held."""


def open_source(directory: Directory, meta: VlogMeta) -> ValueLogFile | UnreadableFile:
    """A file as the MANIFEST names it; a missing or damaged one fails when a value is asked for."""
    try:
        return ValueLogFile(directory, meta)
    except CorruptionError as error:
        return UnreadableFile(meta, error)


class ValueLogView:
    """Immutable: logical file id to the file that holds its values now."""

    __slots__ = ("_fetch", "compiled", "files", "path")

    def __init__(self, path: str, files: Iterable[ValueSource] = ()) -> None:
        """`path` is the value directory, for messages. No logical file may lie in two files."""
        self.path = path
        self.files: dict[int, ValueSource] = {file.file_id: file for file in files}
        self._fetch: dict[bytes, Fetch] = {}
        for file in self.files.values():
            for logical in file.logical:
                key = logical.to_bytes(_ID_BYTES, "little")
                if key in self._fetch:
                    raise InvariantError(f"logical value-log file {logical} lies in two files")
                self._fetch[key] = file.fetch
        self.compiled: Any = None  # the compiled twin of `read`
        if NATIVE is not None:
            found = [part for file in self.files.values() for part in file.compiled()]
            # not `self.read`: it would have this view, which has the map
            self.compiled = NATIVE.ValueMap(found, partial(_read, path, self._fetch))

    def read(self, pointer: bytes, version: int | None = None) -> bytes:
        """The value at an encoded address, checked; `version` is checked too when given."""
        return _read(self.path, self._fetch, pointer, version)

    def with_file(self, file: ValueSource) -> ValueLogView:
        """With `file` added or put in place of the one with its id."""
        return self.replaced((file,), ())

    def without(self, *file_ids: int) -> ValueLogView:
        """Without these physical files; ids it does not have are no error."""
        return self.replaced((), file_ids)

    def replaced(self, add: Iterable[ValueSource], remove: Iterable[int]) -> ValueLogView:
        """The next view: physical files `remove` gone, then `add` put in."""
        files = dict(self.files)
        for file_id in remove:
            files.pop(file_id, None)
        files.update((file.file_id, file) for file in add)
        return ValueLogView(self.path, files.values())

    def close(self) -> None:
        """Close every file. Only for the last view, when nobody reads."""
        for file in self.files.values():
            file.close()


def _read(
    path: str, fetches: Mapping[bytes, Fetch], pointer: bytes, version: int | None = None
) -> bytes:
    fetch = fetches.get(pointer[:_ID_BYTES])
    if fetch is None or len(pointer) != POINTER_BYTES:
        raise _unresolved(path, pointer)
    return fetch(pointer, version)


def _unresolved(path: str, pointer: bytes) -> CorruptionError:
    if len(pointer) != POINTER_BYTES:
        what = f"a value's address has {len(pointer)} bytes"
        return CorruptionError(what, path=path, offset=0, kind=KIND_VALUE)
    logical = int.from_bytes(pointer[:_ID_BYTES], "little")
    name = file_name(Kind.VLOG, logical) if logical else "value log"
    return CorruptionError(
        f"no file holds the values of logical value-log file {logical}",
        path=f"{path}/{name}", offset=0, kind=KIND_FILE,
    )  # fmt: skip
