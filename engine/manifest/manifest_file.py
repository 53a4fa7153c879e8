"""The MANIFEST: an append-only log of edits, and its replay. See FORMAT.md.

Runs in: supervisor.
Owns: the file MANIFEST and its temporary MANIFEST.new.
Invariants: (1) a record is on the medium before anybody acts on it; (2) a torn last record is cut,
any other damage refuses to open and touches nothing; (3) record numbers are consecutive, so a lost
or repeated record is damage; (4) a rewrite replaces the file by rename, never in place.
Fails with: `CorruptionError`, `FormatVersionError`, `ConfigError` (other external magic), `OSError`
from an append: what is on the medium is then unknown and every later append fails too;
`DiskFullError` from an append: nothing changed.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

import msgpack
from meles.engine.codec.checksum import crc32c
from meles.engine.codec.header import HEADER_BYTES, MAGIC_MANIFEST, FileHeader, decode_header
from meles.engine.crypt.file_cipher import FileCipher, What
from meles.engine.crypt.keys import KeyRing, cipher_for, new_header
from meles.engine.errors import ConfigError, CorruptionError, DiskFullError, InvariantError
from meles.engine.fs.files import Directory, File, is_shortage
from meles.engine.fs.names import MANIFEST, MANIFEST_REWRITE
from meles.engine.manifest.edit import Edit
from meles.engine.manifest.version import Version

_PREFIX: Final = struct.Struct("<IIQ")  # payload bytes, checksum, record number
_NUMBER: Final = struct.Struct("<Q")
PREFIX_BYTES: Final = _PREFIX.size
_END: Final = b"\xff"  # ends a payload: the zeros of a sector that was lost never look like it
_SECTOR: Final = 512  # a torn write leaves whole sectors old (here: zero or absent) or new
_REWRITE_AT: Final = 1 << 20  # a MANIFEST smaller than this is never rewritten
_REWRITE_FACTOR: Final = 8  # ... nor one smaller than this many times what its state needs


@dataclass(frozen=True, slots=True)
class Replay:
    """A MANIFEST read: its state, the end of the last whole record, and bytes of a torn one."""

    version: Version
    header: FileHeader
    end: int
    number: int
    cut: int


def _record(edit: Edit, number: int, seed: int, cipher: FileCipher | None) -> bytes:
    changes: bytes = msgpack.packb(edit.to_plain(), use_bin_type=True)
    if cipher is not None:
        changes = cipher.seal_again(changes, What.MANIFEST_RECORD, number)
    payload = changes + _END
    crc = crc32c(_NUMBER.pack(number) + payload, seed ^ len(payload))
    return _PREFIX.pack(len(payload), crc, number) + payload


def replay_manifest(data: bytes, path: str, keys: KeyRing | None = None) -> Replay:
    """The state a MANIFEST describes. Reads only.

    The invariants are checked at the end, and after each record only to find out which one broke
    them: a check looks at all tables there are.
    """
    header = decode_header(data, MAGIC_MANIFEST, path)
    file = _Sealing(header.seed, cipher_for(keys, header, path), path)
    replayed = _replay(data, header, file, check=False)
    try:
        replayed.version.check()
    except InvariantError:
        return _replay(data, header, file, check=True)
    return replayed


def _replay(data: bytes, header: FileHeader, file: _Sealing, *, check: bool) -> Replay:
    version, offset, number = Version.empty(1), HEADER_BYTES, 0
    while offset < len(data):
        edit = _edit_at(data, offset, number + 1, file)
        if edit is None:
            break
        payload_bytes = _PREFIX.unpack_from(data, offset)[0]
        try:
            version = edit.apply(version, check=check)
        except InvariantError as error:
            raise _damage(file.path, offset, f"change does not fit: {error}") from error
        offset += PREFIX_BYTES + payload_bytes
        number += 1
    if number == 0:
        raise _damage(file.path, HEADER_BYTES, "no whole record")
    return Replay(version, header, offset, number, len(data) - offset)


class _Sealing(NamedTuple):
    """What reading a record takes beside its bytes."""

    seed: int
    cipher: FileCipher | None
    path: str


def _edit_at(data: bytes, offset: int, number: int, file: _Sealing) -> Edit | None:
    """The record at `offset`; None for a torn last one."""
    path = file.path
    rest = len(data) - offset
    if rest >= PREFIX_BYTES:
        length, crc, found = _PREFIX.unpack_from(data, offset)
        start = offset + PREFIX_BYTES
        payload = data[start : start + length]
        if len(payload) == length and crc == crc32c(
            _NUMBER.pack(found) + payload, file.seed ^ length
        ):  # fmt: skip
            if found != number:
                raise _damage(path, offset, f"record {found} where {number} belongs")
            try:
                return Edit.from_plain(_unpacked(payload, number, file.cipher))
            except (ValueError, msgpack.UnpackException) as error:
                raise _damage(path, offset, f"record cannot be read: {error}") from None
    if _is_torn(data, offset, number, file):
        return None
    raise _damage(path, offset, "record checksum does not match")


def _is_torn(data: bytes, offset: int, number: int, file: _Sealing) -> bool:
    """Whether the bytes from `offset` on can be an append that a crash cut short.

    A torn append is the last thing in the file, and is either shorter than it says or lacks whole
    sectors. A length that was damaged also says "longer than the file": so a prefix that claims the
    right record number must lack bytes at the end, and no whole record may follow anywhere.
    """
    rest = data[offset:]
    if not rest.strip(b"\0"):
        return True
    for at in range(1, len(rest) - PREFIX_BYTES + 1):
        length, crc, found = _PREFIX.unpack_from(rest, at)
        if number <= found <= number + 1_000_000 and length <= len(rest) - at - PREFIX_BYTES:
            payload = rest[at + PREFIX_BYTES : at + PREFIX_BYTES + length]
            if crc == crc32c(_NUMBER.pack(found) + payload, file.seed ^ length):
                return False
    if len(rest) < PREFIX_BYTES:
        return True
    length, crc, found = _PREFIX.unpack_from(rest, 0)
    if found == number and length > len(rest) - PREFIX_BYTES:
        return not _decodes(rest[PREFIX_BYTES:], number, file.cipher)
    first = -(-offset // _SECTOR) * _SECTOR - offset
    bounds = [0, *range(first, len(rest), _SECTOR), len(rest)]
    pieces = [rest[a:b] for a, b in pairwise(bounds) if b > a]
    return any(not piece.strip(b"\0") for piece in pieces)


def _unpacked(payload: bytes, number: int, cipher: FileCipher | None) -> object:
    """The change set in a payload. `ValueError` or an error of msgpack if there is none."""
    if payload[-1:] != _END:
        raise ValueError("payload has no end")
    changes = payload[:-1]
    if cipher is not None:
        changes = cipher.open_again(changes, What.MANIFEST_RECORD, number)
    return msgpack.unpackb(changes, raw=False, strict_map_key=True)


def _decodes(payload: bytes, number: int, cipher: FileCipher | None) -> bool:
    """Whether the payload is whole: then its length word was damaged and nothing is missing.

    A cut msgpack map never decodes, nor does a cut seal, so a torn record is not mistaken for a
    damaged one.
    """
    try:
        _unpacked(payload, number, cipher)
    except (ValueError, msgpack.UnpackException):
        return False
    return True


def _damage(path: str, offset: int, what: str) -> CorruptionError:
    return CorruptionError(what, path=path, offset=offset, kind="manifest record")


class ManifestFile:
    """The open MANIFEST. One thread at a time appends."""

    def __init__(
        self, directory: Directory, file: File, replayed: Replay, cipher: FileCipher | None
    ) -> None:
        self._directory = directory
        self._cipher = cipher
        self._file = file
        self._header = replayed.header
        self._end = replayed.end
        self._number = replayed.number
        self._base = replayed.end  # size after the last rewrite
        self._failure: OSError | None = None  # what is on the medium is not known any more

    @staticmethod
    def create(directory: Directory, version: Version, external: int) -> ManifestFile:
        """A new MANIFEST describing `version`, durable when this returns."""
        header, cipher = new_header(
            directory.keys, MAGIC_MANIFEST, 0, external=external, salt=os.urandom(16)
        )
        content = header.encode() + _record(Edit.of_version(version), 1, header.seed, cipher)
        file = directory.replace(MANIFEST, MANIFEST_REWRITE, content)
        made = Replay(version, header, len(content), 1, 0)
        return ManifestFile(directory, file, made, cipher)

    @staticmethod
    def read(directory: Directory, external: int) -> Replay:
        """Replay without changing anything. `FileNotFoundError` when there is none."""
        path = directory.join(MANIFEST)
        data = directory.read(MANIFEST)
        replayed = replay_manifest(data, path, directory.keys)
        if replayed.header.external != external:
            raise ConfigError(
                f"option external_magic_version={external}: {path} was made with "
                f"{replayed.header.external}"
            )
        return replayed

    @staticmethod
    def open(directory: Directory, replayed: Replay) -> ManifestFile:
        """Go on appending after what `read` found; a torn last record is cut.

        Not with a key that is no longer the one for new files: the state goes into a new file.
        """
        header = replayed.header
        if header.key_id != (0 if directory.keys is None else directory.keys.current()):
            return ManifestFile.create(directory, replayed.version, header.external)
        cipher = cipher_for(directory.keys, header, directory.join(MANIFEST))
        directory.unlink(MANIFEST_REWRITE)
        file = directory.open(MANIFEST, write=True)
        try:
            if replayed.cut:
                file.truncate(replayed.end)
                file.sync()
        except BaseException:
            file.close()
            raise
        return ManifestFile(directory, file, replayed, cipher)

    def append(self, edit: Edit, after: Version) -> None:
        """Make the edit durable. `after` is the Version it leads to, for when the file is
        rewritten.
        """
        if self._failure is not None:
            raise OSError(errno.EIO, "an earlier change of the MANIFEST failed") from self._failure
        record = _record(edit, self._number + 1, self._header.seed, self._cipher)
        try:
            due = self._end + len(record) > max(_REWRITE_AT, _REWRITE_FACTOR * self._base)
            if not (due and self._rewrite(after)):
                self._append(record)
        except DiskFullError:
            raise
        except OSError as error:
            self._failure = error
            raise

    def _append(self, record: bytes) -> None:
        try:
            self._file.pwrite(record, self._end)
            self._file.sync()
        except DiskFullError:
            self._take_back()
            raise
        self._end += len(record)
        self._number += 1

    def _take_back(self) -> None:
        """A full disk: make sure that the record is not there, so that the caller may go on."""
        try:
            self._file.truncate(self._end)
            self._file.sync()
        except OSError as error:
            raise OSError(errno.EIO, "the state of the MANIFEST is unknown") from error

    def _rewrite(self, version: Version) -> bool:
        """Replace the file by a short one. False, and nothing happened, without a descriptor."""
        try:
            fresh = ManifestFile.create(self._directory, version, self._header.external)
        except OSError as error:
            if is_shortage(error):
                return False
            raise
        self._file.close()
        self._file, self._header, self._cipher = fresh._file, fresh._header, fresh._cipher
        self._end, self._number, self._base = fresh._end, fresh._number, fresh._base
        return True

    def close(self) -> None:
        """Close; everything appended is already durable."""
        self._file.close()
