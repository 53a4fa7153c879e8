"""Which data keys a directory has: what its registry, its files and the given key say together.

Runs in: supervisor.
Invariants: (1) nothing is changed but that an empty directory gets a registry; (2) whatever does
not fit is refused before any other file is read: a wrong key, none where one is needed, a key for
what is not encrypted, a registry that is missing; (3) before a key is used, core dumps of this
process are told to leave memory out.
Fails with: `EncryptionKeyError`, `CorruptionError`, `ConfigError` (the library is not installed),
`OSError`.
"""

from __future__ import annotations

from meles.engine.codec.header import (
    HEADER_BYTES,
    MAGIC_MANIFEST,
    SUFFIX_MAGICS,
    decode_header,
)
from meles.engine.crypt.file_cipher import aead
from meles.engine.crypt.keys import KEY_BYTES, DataKey, KeyRing
from meles.engine.crypt.registry import OwnedKeys, read_registry, unix_seconds, write_registry
from meles.engine.errors import CorruptionError, EncryptionKeyError
from meles.engine.fs.core_dumps import leave_memory_out_of_core_dumps
from meles.engine.fs.files import Directory
from meles.engine.fs.names import MANIFEST, parse_name
from meles.engine.run_job import JobDirs


def open_directory_keys(
    dirs: JobDirs, master: bytes | None, period: float, *, read_only: bool
) -> KeyRing | None:
    """The keys; None when nothing is encrypted. `period`: seconds a data key is used for."""
    tables = dirs.tables
    if master is not None:
        prepare_for_keys()
    ring = read_registry(tables, master)
    if ring is None and master is not None:
        if not is_empty(tables):
            raise no_registry(tables)
        ring = KeyRing([DataKey.fresh(1, unix_seconds())], 1)
        if not read_only:
            write_registry(tables, ring, master)
    if ring is None or read_only:
        return ring
    return OwnedKeys(ring, tables, master, period)


def prepare_for_keys() -> None:
    """Before a key is used. `ConfigError`, with nothing touched, when the library is missing."""
    aead(bytes(KEY_BYTES))
    leave_memory_out_of_core_dumps()


def is_empty(tables: Directory) -> bool:
    """Whether there is nothing yet that a key could have sealed."""
    return not any(name == MANIFEST or parse_name(name) for name in tables.names())


def no_registry(tables: Directory) -> EncryptionKeyError:
    """Why a key does not open a directory that has files and no registry."""
    if sealed_by(tables):
        return EncryptionKeyError(
            f"{tables.path} is encrypted, and KEYREGISTRY is missing",
            hint="bring KEYREGISTRY back from a copy of the directory: the keys are in it alone",
        )
    return EncryptionKeyError(
        f"{tables.path} is not encrypted, and a key was given",
        hint="open it without encryption_key, or encrypt it with `meles rotate`",
    )


def sealed_by(tables: Directory) -> int:
    """The id of a data key that some file is sealed with; 0: none is, as far as can be read.

    The MANIFEST alone would not do: it may be lost with the registry, or plain again.
    """
    for name in tables.names():
        parsed = parse_name(name)
        if parsed is None and name != MANIFEST:
            continue
        with tables.open(name) as file:
            head = file.pread(HEADER_BYTES, 0)
        try:
            magic = MAGIC_MANIFEST if parsed is None else SUFFIX_MAGICS[parsed[0].value]
            key_id = decode_header(head, magic, tables.join(name)).key_id
        except CorruptionError:
            continue
        if key_id:
            return key_id
    return 0
