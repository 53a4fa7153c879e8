"""The 64-byte header that begins every Meles file. See FORMAT.md beside this file.

Runs in: supervisor and workers.
Invariants: (1) magic and version never move, so any version can name a newer one; (2) a header is
trusted only after its checksum held; (3) key id and salt are zero in an unencrypted file.
Fails with: `FormatVersionError` (newer), `CorruptionError` (damaged, or not ours).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from meles.engine.codec.checksum import crc32c
from meles.engine.errors import CorruptionError, FormatVersionError

_FIXED: Final = struct.Struct("<8sHHIQQ16sQI")  # magic .. reserved; the checksum follows
_CRC: Final = struct.Struct("<I")
_VERSION: Final = struct.Struct("<H")
HEADER_BYTES: Final = 64
FORMAT_VERSION: Final = 1

MAGIC_WAL: Final = b"MELESWAL"
MAGIC_TABLE: Final = b"MELESSST"
MAGIC_VLOG: Final = b"MELESVLG"
MAGIC_MANIFEST: Final = b"MELESMAN"
MAGIC_REGISTRY: Final = b"MELESKEY"
MAGIC_BACKUP: Final = b"MELESBAK"
SUFFIX_MAGICS: Final = {"mem": MAGIC_WAL, "sst": MAGIC_TABLE, "vlog": MAGIC_VLOG}

assert _FIXED.size + _CRC.size == HEADER_BYTES, "FORMAT.md says 64"  # noqa: S101


@dataclass(frozen=True, slots=True)
class FileHeader:
    """What a file says of itself. `external` is the user's own number (MANIFEST only)."""

    magic: bytes
    file_id: int
    external: int = 0
    key_id: int = 0
    salt: bytes = bytes(16)
    version: int = FORMAT_VERSION

    def encode(self) -> bytes:
        fixed = _FIXED.pack(
            self.magic, self.version, self.external, 0, self.file_id, self.key_id, self.salt, 0, 0
        )
        return fixed + _CRC.pack(crc32c(fixed))

    @property
    def seed(self) -> int:
        """Start value of the checksums inside this file: a block moved to another file fails.

        The checksum of the fields alone: over the whole header, which ends with it, CRC-32C comes
        to the same number for every file.
        """
        return crc32c(self.encode()[: _FIXED.size])


def decode_header(data: bytes, magic: bytes, path: str) -> FileHeader:
    """Parse and check the first 64 bytes of a file."""
    kind = magic[5:].decode().lower() + " header"
    if len(data) < HEADER_BYTES:
        raise CorruptionError("file is shorter than its header", path=path, offset=0, kind=kind)
    fixed = data[: _FIXED.size]
    found, version, external, _, file_id, key_id, salt, _, _ = _FIXED.unpack(fixed)
    crc = _CRC.unpack_from(data, _FIXED.size)[0]
    if found == magic and version > FORMAT_VERSION and not _was_version_1(fixed, crc):
        raise FormatVersionError(
            f"{path} has format version {version}, this meles reads up to {FORMAT_VERSION}"
        )
    if crc != crc32c(fixed):
        raise CorruptionError("header checksum does not match", path=path, offset=0, kind=kind)
    if found != magic:
        raise CorruptionError(
            f"file begins with {found!r}, expected {magic!r}", path=path, offset=0, kind=kind
        )
    if version < 1:
        raise FormatVersionError(f"{path} has format version {version}, which never existed")
    return FileHeader(magic, file_id, external, key_id, salt, version)


def _was_version_1(fixed: bytes, crc: int) -> bool:
    """Whether only the version is damaged: a newer header has a checksum over its own version."""
    return crc32c(fixed[:8] + _VERSION.pack(1) + fixed[10:]) == crc
