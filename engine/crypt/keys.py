"""The data keys of a directory, and which of them a file is sealed with.

Runs in: supervisor; workers have a copy for the length of a job.
Invariants: (1) every new file gets a salt of its own, and so a key of its own: also in a copy of
the directory that is opened elsewhere; (2) a file is opened with the key its header names; (3) no
key is ever shown: not by `repr`, not in an error.
Fails with: `EncryptionKeyError` (no such key), `CorruptionError` (a file that is not sealed where
all of them are), `ConfigError` without the library.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from meles.engine.codec.header import FileHeader
from meles.engine.crypt.file_cipher import FileCipher
from meles.engine.errors import CorruptionError, EncryptionKeyError

KEY_BYTES: Final = 32
SALT_BYTES: Final = 16
_RING: Final = struct.Struct("<QB")  # the active key, whether there may be files without a seal
_KEY: Final = struct.Struct(f"<Qd{KEY_BYTES}s")  # id, unix seconds, the key


@dataclass(frozen=True, slots=True)
class DataKey:
    """A key files are sealed with, and when it was made (unix seconds)."""

    id: int
    created: float
    secret: bytes = field(repr=False)

    @staticmethod
    def fresh(key_id: int, now: float) -> DataKey:
        return DataKey(key_id, now, os.urandom(KEY_BYTES))


class KeyRing:
    """Data keys by id. `active` seals new files, 0: they are not sealed.

    `mixed`: there may be files that are not sealed, from before the directory was encrypted.
    """

    def __init__(self, keys: Iterable[DataKey], active: int, *, mixed: bool = False) -> None:
        self.keys = {key.id: key for key in keys}
        self.active = active
        self.mixed = mixed

    def current(self) -> int:
        """The id of the key that seals a file made now; 0: none does."""
        return self.active

    def pack(self) -> bytes:
        """For a worker; never for a file, a log or a command line."""
        active = self.current()  # first: it may add a key
        head = _RING.pack(active, self.mixed)
        keys = (_KEY.pack(key.id, key.created, key.secret) for key in self.keys.values())
        return b"".join((head, *keys))

    @staticmethod
    def unpack(packed: bytes) -> KeyRing:
        """`ValueError` when `pack` did not make it."""
        if len(packed) < _RING.size or (len(packed) - _RING.size) % _KEY.size:
            raise ValueError("these are no data keys")
        active, mixed = _RING.unpack_from(packed)
        keys = [DataKey(*fields) for fields in _KEY.iter_unpack(packed[_RING.size :])]
        ring = KeyRing(keys, active, mixed=bool(mixed))
        if len(ring.keys) < len(keys) or 0 in ring.keys or (active and active not in ring.keys):
            raise ValueError("these are no data keys")
        return ring


def new_header(
    ring: KeyRing | None, magic: bytes, file_id: int, *, external: int = 0, salt: bytes = b""
) -> tuple[FileHeader, FileCipher | None]:
    """The header of a file about to be made, and what seals it. `salt` is for one that is not
    sealed.
    """
    key_id = 0 if ring is None else ring.current()
    if ring is None or not key_id:
        return FileHeader(magic, file_id, external, salt=salt or bytes(SALT_BYTES)), None
    header = FileHeader(magic, file_id, external, key_id, os.urandom(SALT_BYTES))
    return header, FileCipher(ring.keys[key_id].secret, header)


def cipher_for(ring: KeyRing | None, header: FileHeader, path: str) -> FileCipher | None:
    """What opens the file of a header; None when it is not sealed."""
    if not header.key_id:
        if ring is not None and ring.active and not ring.mixed:
            raise CorruptionError(
                "the file is not encrypted, and all files of this directory are",
                path=path, offset=0, kind=header.magic[5:].decode().lower() + " header",
            )  # fmt: skip
        return None
    if ring is None:
        raise EncryptionKeyError(
            f"{path} is encrypted with data key {header.key_id}, and KEYREGISTRY is missing",
            hint="bring KEYREGISTRY back from a copy of the directory: the keys are in it alone",
        )
    key = ring.keys.get(header.key_id)
    if key is None:
        raise EncryptionKeyError(
            f"{path} is encrypted with data key {header.key_id}, which KEYREGISTRY does not hold",
            hint="KEYREGISTRY is older than the file: bring back the newest copy of it",
        )
    return FileCipher(key.secret, header)


def seals(ring: KeyRing | None) -> bool:
    """Whether files made now are sealed."""
    return ring is not None and bool(ring.active)
