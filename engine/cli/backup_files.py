"""A backup written to a file: under another name first, so that the name stands for a whole one.

Runs in: supervisor.
Owns: the file until it has its name.
Invariants: (1) a file that is there stays as it is until a whole backup takes its place; (2) the
new one is on the medium before it has the name, and nobody else may read it; (3) whatever is
raised, what was begun is removed.
Fails with: `ConfigError` for a name that is taken, `OSError`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import BinaryIO

import meles

_MODE = 0o600


@contextlib.contextmanager
def written_whole(path: str, *, force: bool) -> Iterator[BinaryIO]:
    """The file of this name, to be written; it has the name when the block has ended well."""
    _check_free(path, force)
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".{name[:60]}.writing-{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
    try:
        with open(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _check_free(path, force)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _check_free(path: str, force: bool) -> None:
    if os.path.isdir(path):
        raise meles.ConfigError(f"{path} is a directory", hint="name a file")
    if os.path.lexists(path) and not force:
        raise meles.ConfigError(f"{path} is there already", hint="replace it with --force")


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
