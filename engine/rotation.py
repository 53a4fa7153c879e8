"""Giving a directory another master key, a first one, or none: `meles rotate`.

Runs in: supervisor, in a process of its own: nobody has the directory open.
Owns: the lock of the directory while it works.
Invariants: (1) KEYREGISTRY alone is replaced, by one rename: a crash leaves the old key or the new
one; (2) files keep the data keys they were sealed with, new ones get a new data key, which nobody
who held the old master key knows; (3) encryption ends only when that is asked for in so many words.
Fails with: `EncryptionKeyError` (the old key is not the one), `ConfigError`, `LockedError`,
`DirectoryMissingError`, `CorruptionError`, `OSError`.
"""

from __future__ import annotations

from meles.engine.crypt.keys import KeyRing
from meles.engine.crypt.registry import read_registry, with_fresh_key, write_registry
from meles.engine.errors import ConfigError, DirectoryMissingError, EncryptionKeyError
from meles.engine.fs.dir_lock import DirectoryLock, open_to_lock
from meles.engine.fs.files import Directory
from meles.engine.fs.names import MANIFEST
from meles.engine.keys_of_directory import no_registry, prepare_for_keys, sealed_by
from meles.engine.reports import Rotation


def rotate_keys(
    path: str, old_key: bytes | None, new_key: bytes | None, *, plaintext: bool, wait: float
) -> Rotation:
    """Put `new_key` in the place of `old_key`; None: not encrypted."""
    if plaintext and new_key is not None:
        raise ConfigError("rotate: plaintext=True and a new_key contradict each other")
    if not plaintext and new_key is None:
        raise ConfigError(
            "rotate: no new_key was given",
            hint="give one; to store what is new unencrypted, ask for that with plaintext=True",
        )
    prepare_for_keys()
    with open_to_lock(path) as directory:
        lock = DirectoryLock.acquire(directory, shared=False, wait=wait)
        try:
            ring = _rotated(directory, old_key, plaintext=plaintext)
            write_registry(directory, ring, new_key)
        finally:
            lock.release()
    return Rotation(path, encrypted=not plaintext, data_keys=len(ring.keys))


def _rotated(directory: Directory, old_key: bytes | None, *, plaintext: bool) -> KeyRing:
    """The keys the directory is to have."""
    if MANIFEST not in directory.names():
        raise DirectoryMissingError(f"no database in {directory.path}")
    ring = read_registry(directory, old_key)
    if ring is None:
        if old_key is not None or sealed_by(directory):
            raise no_registry(directory)
        if plaintext:
            raise EncryptionKeyError(
                f"{directory.path} is not encrypted", hint="there is nothing to decrypt"
            )
        return with_fresh_key(KeyRing((), 0), mixed=True)
    if plaintext:
        return KeyRing(ring.keys.values(), 0, mixed=True)
    return with_fresh_key(ring)
