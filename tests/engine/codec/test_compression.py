"""Compression: round trips, bounds on what hostile data may make, and missing libraries."""

from __future__ import annotations

import os
import sys
import threading

import cramjam
import lz4.block
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.codec import compression
from meles.engine.codec.compression import CODEC_IDS, MAX_RAW_BYTES, compress, decompress, require
from meles.engine.errors import ConfigError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PACKED = ["snappy", "lz4", "zstd"]


@pytest.mark.parametrize("codec", ["none", *PACKED])
@pytest.mark.parametrize("data", [b"a", b"abc" * 5000, os.urandom(5000)])
def test_round_trip(codec: str, data: bytes) -> None:
    for _ in range(3):  # the second call uses the compressor the first one made
        packed = compress(codec, data, 3)
        assert decompress(CODEC_IDS[codec], packed, len(data)) == data
    if codec != "none" and len(set(data)) == 3:
        assert len(packed) < len(data) / 10


def test_zstd_level_counts() -> None:
    data = b"".join(b"%d," % (number * number) for number in range(20_000))
    assert len(compress("zstd", data, 19)) < len(compress("zstd", data, 1))


def test_ids_are_those_of_the_format() -> None:
    assert CODEC_IDS == {"none": 0, "snappy": 1, "lz4": 2, "zstd": 3}


@pytest.mark.parametrize("codec", ["none", *PACKED])
@pytest.mark.parametrize("wrong", [-1, 1])
def test_another_length_is_refused(codec: str, wrong: int) -> None:
    data = b"abcdef" * 500
    with pytest.raises(ValueError):  # noqa: PT011 - each library says it in its own words
        decompress(CODEC_IDS[codec], compress(codec, data, 1), len(data) + wrong)


@pytest.mark.parametrize("codec", PACKED)
@pytest.mark.parametrize("raw_len", [0, -1, MAX_RAW_BYTES + 1, 0xFFFFFFFF])
def test_lengths_out_of_bounds_are_refused_before_any_work(codec: str, raw_len: int) -> None:
    with pytest.raises(ValueError, match="not allowed"):
        decompress(CODEC_IDS[codec], compress(codec, b"data", 1), raw_len)


def bombs() -> dict[str, bytes]:
    zeros = bytes(8 << 20)
    return {
        "snappy": bytes(cramjam.snappy.compress_raw(zeros)),
        "lz4": lz4.block.compress(zeros, store_size=False),
        "zstd": zstd.compress(zeros),
    }


@pytest.mark.parametrize("codec", PACKED)
def test_a_bomb_makes_no_more_than_was_asked_for(codec: str) -> None:
    import tracemalloc

    bomb = bombs()[codec]
    require(codec)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):  # noqa: PT011 - each library says it in its own words
            decompress(CODEC_IDS[codec], bomb, 4096)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("codec", PACKED)
@given(data=st.binary(max_size=200), raw_len=st.integers(1, 5000))
def test_garbage_raises_only_value_error(codec: str, data: bytes, raw_len: int) -> None:
    try:
        raw = decompress(CODEC_IDS[codec], data, raw_len)
    except ValueError:
        return
    assert len(raw) == raw_len


@pytest.mark.parametrize("codec", PACKED)
@given(at=st.integers(0, 10_000), cut=st.integers(0, 10_000), mask=st.integers(1, 255))
def test_damaged_data_raises_only_value_error(codec: str, at: int, cut: int, mask: int) -> None:
    data = b"".join(b"%d," % number for number in range(500))
    packed = bytearray(compress(codec, data, 1))
    packed[at % len(packed)] ^= mask
    for damaged in (bytes(packed), bytes(packed[: cut % len(packed)])):
        try:
            assert len(decompress(CODEC_IDS[codec], damaged, len(data))) == len(data)
        except ValueError:
            pass


def test_trailing_bytes_of_zstd_are_refused() -> None:
    data = b"abc" * 100
    with pytest.raises(ValueError, match="one frame"):
        decompress(3, compress("zstd", data, 1) + b"x", len(data))


def test_unknown_codec() -> None:
    with pytest.raises(ValueError, match="codec 9"):
        decompress(9, b"data", 4)
    with pytest.raises(ConfigError, match="'brotli'"):
        compress("brotli", b"data", 1)
    with pytest.raises(ConfigError, match="'brotli'"):
        require("brotli")


@pytest.mark.parametrize("codec", PACKED)
def test_a_missing_library_names_the_extra(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, compression._EXTRA_MODULES[codec], None)
    compression._library.cache_clear()
    try:
        for use in (
            lambda: require(codec),
            lambda: compress(codec, b"data", 1),
            lambda: decompress(CODEC_IDS[codec], b"data", 4),
        ):
            with pytest.raises(ConfigError, match=rf"meles\[{codec}\]"):
                use()
    finally:
        compression._library.cache_clear()


def test_threads_do_not_share_a_compressor() -> None:
    data = [os.urandom(200) * 50 for _ in range(4)]
    wrong: list[int] = []
    start = threading.Barrier(4)

    def work(nth: int) -> None:
        start.wait()
        for _ in range(300):
            packed = compress("zstd", data[nth], 1)
            if decompress(3, packed, len(data[nth])) != data[nth]:
                wrong.append(nth)

    threads = [threading.Thread(target=work, args=(nth,)) for nth in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
