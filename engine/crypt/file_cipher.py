"""Sealing and opening what one file holds: AES-256-GCM under a key of that file alone.

Runs in: supervisor and workers.
Owns: the file's key, derived from a data key and the random salt in the file's header.
Invariants: (1) nothing opens anywhere but in its own file, as the kind of thing it is, at the place
it was sealed for; (2) a nonce is a place and a serial number, or random: whoever seals sees to it
that no two different things get one nonce; (3) the library is imported with the first key.
Fails with: `SealBroken` (the caller names the place), `ConfigError` without the library.
"""

from __future__ import annotations

import hmac
import os
import struct
from enum import IntEnum
from typing import Any, Final

from meles.engine.codec.header import FileHeader
from meles.engine.errors import ConfigError

TAG_BYTES: Final = 16  # what sealing adds
NONCE_BYTES: Final = 12
_NONCE: Final = struct.Struct("<QI")  # place, serial number
_BOUND: Final = struct.Struct("<8sQB")  # magic, file id, what
_PLACE: Final = struct.Struct("<Q")
_HASH: Final = "sha256"


class SealBroken(ValueError):  # noqa: N818 - never reaches a caller: it becomes one of our errors
    """The bytes were not sealed here, for this place, as this, or they were changed."""


class What(IntEnum):
    """What is sealed: one never passes for another."""

    REGISTRY = 1
    MANIFEST_RECORD = 2
    LOG_FRAME = 3
    LOG_END = 4
    BLOCK = 5
    FILTER = 6
    INDEX = 7
    PROPERTIES = 8
    VALUE = 9


def derive(secret: bytes, salt: bytes, purpose: bytes) -> bytes:
    """A 32-byte key out of another one: HKDF with SHA-256 (RFC 5869)."""
    extracted = hmac.digest(salt, secret, _HASH)
    return hmac.digest(extracted, purpose + b"\x01", _HASH)


def aead(key: bytes) -> Any:
    """AES-256-GCM under `key`. `ConfigError` when the library is not installed."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise ConfigError(
            "option encryption_key: the module 'cryptography' is missing",
            hint="pip install 'meles[crypto]'",
        ) from error
    return AESGCM(key)


class FileCipher:
    """Seals and opens for the file of one header. Any number of threads may use it."""

    __slots__ = ("_aead", "_bound", "_end_key", "_invalid")

    def __init__(self, data_key: bytes, header: FileHeader) -> None:
        about = header.magic + _PLACE.pack(header.file_id)
        self._aead = aead(derive(data_key, header.salt, b"meles file " + about))
        self._end_key = derive(data_key, header.salt, b"meles end " + about)
        self._bound = {what: _BOUND.pack(header.magic, header.file_id, what) for what in What}
        from cryptography.exceptions import InvalidTag

        self._invalid = InvalidTag

    def seal(
        self, data: bytes, what: What, place: int, more: bytes = b"", serial: int = 0
    ) -> bytes:
        """`data` sealed for a place; `more` has to be the same when it is opened."""
        bound = self._bound[what] + _PLACE.pack(place) + more
        sealed: bytes = self._aead.encrypt(_NONCE.pack(place, serial), data, bound)
        return sealed

    def open(
        self, sealed: bytes, what: What, place: int, more: bytes = b"", serial: int = 0
    ) -> bytes:
        """What was sealed. `SealBroken` when it was not this, or not for here."""
        bound = self._bound[what] + _PLACE.pack(place) + more
        return self._opened(_NONCE.pack(place, serial), sealed, bound)

    def seal_again(self, data: bytes, what: What, place: int) -> bytes:
        """As `seal`, where a place may be written to again: a random nonce, and what it sealed."""
        nonce = os.urandom(NONCE_BYTES)
        bound = self._bound[what] + _PLACE.pack(place)
        sealed: bytes = self._aead.encrypt(nonce, data, bound)
        return nonce + sealed

    def open_again(self, sealed: bytes, what: What, place: int) -> bytes:
        """What `seal_again` sealed. `SealBroken` when it was not this, or not for here."""
        if len(sealed) < NONCE_BYTES + TAG_BYTES:
            raise SealBroken("too short for a seal")
        bound = self._bound[what] + _PLACE.pack(place)
        return self._opened(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound)

    def _opened(self, nonce: bytes, sealed: bytes, bound: bytes) -> bytes:
        try:
            data: bytes = self._aead.decrypt(nonce, sealed, bound)
        except self._invalid:
            raise SealBroken("the seal is broken") from None
        return data

    def mark(self, data: bytes, what: What, place: int) -> bytes:
        """A 16-byte authenticator of `data`, which stays readable. It has no nonce to repeat."""
        bound = self._bound[what] + _PLACE.pack(place)
        return hmac.digest(self._end_key, bound + data, _HASH)[:TAG_BYTES]
