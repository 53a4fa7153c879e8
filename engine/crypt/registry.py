"""The file KEYREGISTRY: the data keys, sealed as one under the user's master key. See FORMAT.md.

Runs in: supervisor.
Owns: the file and its temporary KEYREGISTRY.new.
Invariants: (1) the file is sealed whole: no key can be left out, put in or exchanged; (2) it is
replaced by rename, never changed in place, so a crash leaves the old one or the new one; (3) a data
key is on the medium before anything is sealed with it, and no data key is ever given up; (4) a
read-only opening writes nothing.
Fails with: `EncryptionKeyError` (wrong or missing master key), `CorruptionError`,
`FormatVersionError`, `OSError`.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
from collections.abc import Iterable
from typing import Final

from meles.engine.clock import now_ms
from meles.engine.codec.checksum import crc32c
from meles.engine.codec.header import HEADER_BYTES, MAGIC_REGISTRY, FileHeader, decode_header
from meles.engine.crypt.file_cipher import FileCipher, SealBroken, What
from meles.engine.crypt.keys import SALT_BYTES, DataKey, KeyRing
from meles.engine.errors import CorruptionError, EncryptionKeyError
from meles.engine.fs.files import Directory
from meles.engine.fs.names import REGISTRY, REGISTRY_REWRITE

log = logging.getLogger("meles.keys")
_PREFIX: Final = struct.Struct("<II")  # bytes that follow, their checksum
_UNDER_KEY: Final = 0  # the header's `external`: what the data keys are sealed with
_IN_THE_CLEAR: Final = 1
_NO_KEY: Final = b"meles: not encrypted"  # in place of a master key: hides nothing


def encode_registry(ring: KeyRing, master: bytes | None) -> bytes:
    """The whole file. Without a master key anybody can open it."""
    mode = _IN_THE_CLEAR if master is None else _UNDER_KEY
    header = FileHeader(MAGIC_REGISTRY, 0, external=mode, salt=os.urandom(SALT_BYTES))
    head = header.encode()
    cipher = FileCipher(_NO_KEY if master is None else master, header)
    sealed = cipher.seal_again(ring.pack(), What.REGISTRY, mode)
    return head + _PREFIX.pack(len(sealed), crc32c(sealed, header.seed ^ len(sealed))) + sealed


def decode_registry(data: bytes, master: bytes | None, path: str) -> KeyRing:
    """The keys in a file. `EncryptionKeyError` when `master` is not the key it was sealed with."""
    header = decode_header(data[:HEADER_BYTES], MAGIC_REGISTRY, path)
    start = HEADER_BYTES + _PREFIX.size
    if len(data) < start:
        raise _damage("file is shorter than it says", path)
    length, crc = _PREFIX.unpack_from(data, HEADER_BYTES)
    sealed = data[start:]
    if len(sealed) != length or crc != crc32c(sealed, header.seed ^ length):
        raise _damage("checksum does not match", path)
    if header.external == _IN_THE_CLEAR and master is not None:
        raise EncryptionKeyError(
            f"{path}: this directory is no longer encrypted",
            hint="open it without encryption_key, or encrypt it again with `meles rotate`",
        )
    if header.external != _IN_THE_CLEAR and master is None:
        raise EncryptionKeyError(f"{path}: this directory is encrypted, and no key was given")
    cipher = FileCipher(_NO_KEY if master is None else master, header)
    try:
        return KeyRing.unpack(cipher.open_again(sealed, What.REGISTRY, header.external))
    except SealBroken:
        if master is None:
            raise _damage("the seal is broken", path) from None
        raise EncryptionKeyError(
            f"{path}: this is not the key the directory was made with"
        ) from None
    except ValueError as error:
        raise _damage(str(error), path) from None


def _damage(what: str, path: str) -> CorruptionError:
    return CorruptionError(
        what, path=path, offset=HEADER_BYTES, kind="key registry",
        hint="bring KEYREGISTRY back from a copy of the directory: the keys are in it alone",
    )  # fmt: skip


def write_registry(directory: Directory, ring: KeyRing, master: bytes | None) -> None:
    """Put a registry in place of the one that is there, durable when this returns."""
    directory.replace(REGISTRY, REGISTRY_REWRITE, encode_registry(ring, master)).close()


def read_registry(directory: Directory, master: bytes | None) -> KeyRing | None:
    """The keys of a directory; None when it has no registry."""
    if REGISTRY not in directory.names():
        return None
    return decode_registry(directory.read(REGISTRY), master, directory.join(REGISTRY))


def unix_seconds() -> float:
    return now_ms() / 1000


class OwnedKeys(KeyRing):
    """The keys of a directory this process owns: the active one is replaced when it is old.

    Thread-safe: jobs on threads of this process ask, too.
    """

    def __init__(
        self, ring: KeyRing, directory: Directory, master: bytes | None, period: float
    ) -> None:
        """`period`: seconds a data key seals new files."""
        super().__init__(ring.keys.values(), ring.active, mixed=ring.mixed)
        self._directory = directory
        self._master = master
        self._period = period
        self._lock = threading.Lock()

    def current(self) -> int:
        """The key for a new file. One that is too old is replaced first, if that can be written."""
        active = self.active
        if active and unix_seconds() - self.keys[active].created >= self._period:
            with self._lock:
                if active == self.active:
                    self._replace_locked()
        return self.active

    def _replace_locked(self) -> None:
        fresh = with_fresh_key(self)
        try:
            write_registry(self._directory, fresh, self._master)
        except OSError as error:
            log.warning("the data key is due, and KEYREGISTRY cannot be written: %s", error)
            return
        self.keys = fresh.keys
        self.active = fresh.active

    def refuse_plain_files(self) -> None:
        """No file is left that is not sealed: from now on one is damage."""
        with self._lock:
            write_registry(self._directory, KeyRing(self.keys.values(), self.active), self._master)
            self.mixed = False


def with_fresh_key(ring: KeyRing, *, mixed: bool | None = None) -> KeyRing:
    """The same keys and a new one, which is active."""
    key_id = max(ring.keys, default=0) + 1
    keys: Iterable[DataKey] = (*ring.keys.values(), DataKey.fresh(key_id, unix_seconds()))
    return KeyRing(keys, key_id, mixed=ring.mixed if mixed is None else mixed)
