"""A directory that is made beside its place and put there whole, or not at all.

Runs in: supervisor.
Owns: the directory under its temporary name, until it was put in place or given up.
Invariants: (1) at its place is what was there, nothing or an empty directory, until one rename;
(2) it is named after its place, so what a crash leaves explains itself; one that is being made is
locked, one that is not is a leftover.
Fails with: `ConfigError` (the place is taken), `DirectoryMissingError` (no parent), `LockedError`,
`PermissionsError`, `OSError`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from contextlib import ExitStack
from typing import Final

from meles.engine.errors import ConfigError, DirectoryMissingError, LockedError
from meles.engine.fs.dir_lock import DirectoryLock, open_to_lock
from meles.engine.fs.files import Directory, open_directory
from meles.engine.fs.ownership import check_ownership

_TAKEN: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR})
_NAME_BYTES: Final = 200  # of the place's name that go into the temporary one: 255 is the limit


class Staging:
    """`directory` is to be filled; `put_in_place` ends it, or leaving the `with` block gives it up.

    `leftovers` are paths of directories that others for this place left when they were killed.
    """

    def __init__(self, path: str, what: str) -> None:
        """`path` is absent or an empty directory; `what` is being done, for the temporary name."""
        self.path = os.path.realpath(path)
        self._taken = ConfigError(
            f"{self.path} is not empty", hint="give a directory that is new or empty"
        )
        parent, name = os.path.split(self.path)
        if not os.path.isdir(parent):
            raise DirectoryMissingError(f"no directory {parent}", hint="make it first")
        if os.path.lexists(self.path) and not os.path.isdir(self.path):
            raise ConfigError(f"{self.path} is no directory", hint=self._taken.hint)
        short = os.fsdecode(os.fsencode(name)[:_NAME_BYTES])
        start = f".{short}.{what}-"
        self._name = name
        self._temporary = start + secrets.token_hex(4)
        with ExitStack() as undo:
            if os.path.isdir(self.path):
                place = undo.enter_context(open_to_lock(self.path))
                if place.names():
                    raise self._taken
                lock = DirectoryLock.acquire(place, write_pid=False)  # nobody opens it meanwhile
                undo.callback(lock.release)
            self._parent = undo.enter_context(open_directory(parent))
            self.leftovers = self._left(start)
            self._parent.make_directory(self._temporary)
            undo.callback(self._remove)
            self.directory: Directory = open_to_lock(os.path.join(parent, self._temporary))
            undo.callback(self.directory.close)
            check_ownership(self.directory)
            lock = DirectoryLock.acquire(self.directory, write_pid=False)
            undo.callback(lock.release)
            undo.callback(self._empty)
            self._undo = undo.pop_all()

    def _left(self, start: str) -> list[str]:
        """Directories of that name that nobody works on."""
        found = []
        for name in self._parent.names():
            path = self._parent.join(name)
            if not name.startswith(start) or os.path.islink(path) or not os.path.isdir(path):
                continue
            with contextlib.suppress(LockedError, OSError), open_to_lock(path) as directory:
                DirectoryLock.acquire(directory, write_pid=False).release()
                found.append(path)
        return found

    def put_in_place(self) -> None:
        """Give the directory its name, durably. Everything in it is on the medium already."""
        try:
            self._parent.put_directory(self._temporary, self._name)
        except OSError as error:
            if error.errno in _TAKEN:
                raise self._taken from error
            raise
        self._temporary = ""
        self._parent.sync()

    def _empty(self) -> None:
        """Give up what was made, as far as the disk lets us."""
        if self._temporary:
            with contextlib.suppress(OSError):
                for name in self.directory.names():
                    self.directory.unlink(name)

    def _remove(self) -> None:
        if self._temporary:
            with contextlib.suppress(OSError):
                self._parent.remove_directory(self._temporary)

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()
