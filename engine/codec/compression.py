"""Compression of blocks: names, ids and the libraries behind them.

Runs in: supervisor and workers.
Invariants: (1) decompression never makes more than the caller's `raw_len` bytes, at most 64 MiB,
whatever the data claims; (2) an optional library is imported only when a block needs it.
Fails with: `ConfigError` naming the extra to install; `ValueError` for data that does not
decompress to exactly `raw_len` bytes (the caller names the place).
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from meles.engine.errors import ConfigError

NONE: Final = 0
SNAPPY: Final = 1
LZ4: Final = 2
ZSTD: Final = 3
CODEC_IDS: Final = {"none": NONE, "snappy": SNAPPY, "lz4": LZ4, "zstd": ZSTD}
MAX_RAW_BYTES: Final = 64 << 20

_EXTRA_MODULES: Final = {
    "snappy": "cramjam",
    "lz4": "lz4.block",
    "zstd": "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd",
}
_local = threading.local()


@cache
def _library(codec: str) -> Any:
    """The module behind a codec."""
    try:
        return importlib.import_module(_EXTRA_MODULES[codec])
    except ImportError as error:
        raise ConfigError(
            f"option compression={codec!r}: the module {_EXTRA_MODULES[codec]!r} is missing",
            hint=f"pip install 'meles[{codec}]'",
        ) from error


def require(codec: str) -> None:
    """Raise `ConfigError` unless the codec is known and its library is installed."""
    if codec not in CODEC_IDS:
        raise ConfigError(
            f"option compression={codec!r}: allowed is one of "
            + ", ".join(repr(name) for name in CODEC_IDS)
        )
    if codec != "none":
        _library(codec)


def _compress_snappy(data: bytes, _level: int) -> bytes:
    return bytes(_library("snappy").snappy.compress_raw(data))


def _compress_lz4(data: bytes, _level: int) -> bytes:
    return bytes(_library("lz4").compress(data, store_size=False))


def _compress_zstd(data: bytes, level: int) -> bytes:
    """Uses this thread's compressor of the level: making one costs more than a block."""
    zstd = _library("zstd")
    compressors = _local.__dict__.setdefault("zstd", {})
    compressor = compressors.get(level)
    if compressor is None:
        compressor = compressors[level] = zstd.ZstdCompressor(level)
    return bytes(compressor.compress(data, compressor.FLUSH_FRAME))


_COMPRESS: Final[dict[str, Callable[[bytes, int], bytes]]] = {
    "none": lambda data, _level: data,
    "snappy": _compress_snappy,
    "lz4": _compress_lz4,
    "zstd": _compress_zstd,
}


def compress(codec: str, data: bytes, level: int) -> bytes:
    """`data` compressed; `level` counts for zstd alone. Raises `ConfigError`."""
    if codec not in _COMPRESS:
        require(codec)
    return _COMPRESS[codec](data, level)


def _decompress_snappy(data: bytes, raw_len: int) -> bytes:
    snappy = _library("snappy").snappy
    try:
        if snappy.decompress_raw_len(data) != raw_len:
            raise ValueError("the data claims another length")
        return bytes(snappy.decompress_raw(data))
    except _library("snappy").DecompressionError as error:
        raise ValueError(str(error)) from error


def _decompress_lz4(data: bytes, raw_len: int) -> bytes:
    lz4 = _library("lz4")
    try:
        return bytes(lz4.decompress(data, uncompressed_size=raw_len))
    except lz4.LZ4BlockError as error:
        raise ValueError(str(error)) from error


def _decompress_zstd(data: bytes, raw_len: int) -> bytes:
    zstd = _library("zstd")
    decompressor = zstd.ZstdDecompressor()
    try:
        raw = bytes(decompressor.decompress(data, max_length=raw_len))
    except (zstd.ZstdError, EOFError) as error:
        raise ValueError(str(error)) from error
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("the data is not one frame of that length")
    return raw


_DECOMPRESS: Final[dict[int, Callable[[bytes, int], bytes]]] = {
    NONE: lambda data, _raw_len: data,
    SNAPPY: _decompress_snappy,
    LZ4: _decompress_lz4,
    ZSTD: _decompress_zstd,
}


def decompress(codec_id: int, data: bytes, raw_len: int) -> bytes:
    """The `raw_len` bytes that were compressed. `ValueError` for anything else, `ConfigError`."""
    if codec_id not in _DECOMPRESS:
        raise ValueError(f"codec {codec_id} is not known")
    if codec_id != NONE and not 0 < raw_len <= MAX_RAW_BYTES:
        raise ValueError(f"a compressed block of {raw_len} bytes is not allowed")
    raw = _DECOMPRESS[codec_id](data, raw_len)
    if len(raw) != raw_len:
        raise ValueError(f"{len(raw)} bytes where {raw_len} were stored")
    return raw
