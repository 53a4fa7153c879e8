"""Both kernels cut the same entries into the same bytes, and measure the same sizes on the way."""

from __future__ import annotations

import random
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.codec.columns import Columns
from meles.engine.errors import InvariantError
from meles.engine.jobs import BuildOptions
from meles.engine.table.block_maker import BlockMaker
from meles.engine.table.builder import make_blocks
from twins import KERNELS, NATIVE, needs_native

HEAD, SEED, NOW = b"h" * 64, 0x1234ABCD, 1000

options = st.builds(
    BuildOptions,
    block_size=st.sampled_from([256, 512, 4096, 65536]),
    compression=st.sampled_from(["none", "none", "snappy", "lz4", "zstd"]),
)


def entries(seed: int, count: int, longest: int) -> Columns:
    """Entries of every kind; some keys have many versions, some values are long."""
    rng = random.Random(seed)
    columns = Columns()
    keys = sorted({rng.randbytes(rng.randrange(1, 20)) for _ in range(count)})
    for key in keys:
        versions = 1 if rng.random() < 0.7 else rng.randrange(1, 40)
        for version in sorted(rng.sample(range(1 << 40), versions), reverse=True):
            kind = rng.randrange(12)
            meta = (0, 0, 0, 0, 1, 2, 4, 8, 7 << 8, 9 << 8 | 2, 1 << 8 | 1, 0)[kind]
            value = rng.choice((b"", b"ab", rng.randbytes(rng.randrange(longest)), b"x" * 300))
            if meta & 2:
                value = b"".join(rng.choice((1, 2, 9)).to_bytes(4, "little") for _ in range(3))
            expiry = rng.choice((0, 0, 0, NOW - 1, NOW, NOW + 1)) if seed % 2 else 0
            columns.append(key, version, meta if seed % 3 else 0, expiry, value)
    return columns


def fed(maker: BlockMaker, columns: Columns, cuts: list[int]) -> tuple[list[int], bytes]:
    """Sizes after each batch, and the blocks."""
    sizes, data = [], b""
    for start, stop in pairwise(cuts):
        maker.add(columns.slice(start, stop))
        sizes.append(maker.size)
        if maker.ready > 5000:
            data += bytes(maker.take())
            assert maker.ready == 0
            assert maker.size == sizes[-1], "handing out changes no size"
    maker.end()
    return sizes, data + bytes(maker.take())


@needs_native
@given(
    seed=st.integers(0, 1 << 30),
    count=st.integers(1, 300),
    longest=st.sampled_from([10, 100, 20_000]),
    options=options,
    steps=st.lists(st.integers(1, 400), max_size=20),
)
def test_the_kernels_agree(
    seed: int, count: int, longest: int, options: BuildOptions, steps: list[int]
) -> None:
    columns = entries(seed, count, longest)
    total = len(columns)
    cuts = [0, *(at for at in accumulate(steps) if at < total), total]
    python, native = (make_blocks(k, HEAD, SEED, options, NOW) for k in (None, NATIVE))
    assert fed(python, columns, cuts) == fed(native, columns, cuts)
    assert python.count == native.count == total
    assert python.tally() == native.tally()
    assert python.keys == native.keys == len(set(columns.keys))
    assert python.index() == native.index()
    for lines, bits in ((1, 1), (7, 4), (101, 5)):
        assert python.filter_lines(lines, bits) == native.filter_lines(lines, bits)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_sizes_do_not_depend_on_batches(kernel: Any, compression: str) -> None:
    """Nor on where blocks of one key's versions end: the filter counts the key once."""
    columns = entries(5, 2000, 2000)
    found = []
    for step in (1, 7, 1000, len(columns)):
        options = BuildOptions(block_size=1024, compression=compression)
        maker = make_blocks(kernel, HEAD, SEED, options, NOW)
        sizes = {}
        for at in range(0, len(columns), step):
            maker.add(columns.slice(at, at + step))
            sizes[at + step] = maker.size
        maker.end()
        found.append((sizes, bytes(maker.take()), maker.index(), maker.tally(), maker.keys))
    whole = found[0][0]
    for sizes, *rest in found:
        assert rest == list(found[0][1:])
        assert all(whole[at] == size for at, size in sizes.items() if at in whole)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_failing_codec_is_told_every_time(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError("no")

    monkeypatch.setattr("meles.engine.table.block_maker.compress", fail)
    maker = make_blocks(kernel, HEAD, SEED, BuildOptions(compression="zstd"), NOW)
    with pytest.raises(OSError, match="no"):  # noqa: PT012 - whichever of the calls finds it
        maker.add(entries(1, 3000, 300))
        maker.end()
    with pytest.raises(OSError, match="no"):
        maker.end()


@needs_native
@pytest.mark.parametrize(
    ("column", "value"),
    [("versions", -1), ("versions", 1 << 64), ("metas", 1 << 16), ("metas", -1),
     ("expiries", -1), ("keys", None), ("keys", "text"), ("values", None), ("values", 7)],
)  # fmt: skip
def test_values_of_another_type_are_refused(column: str, value: object) -> None:
    columns: Any = Columns([b"k"], [1], [0], [0], [b"v"])
    getattr(columns, column)[0] = value
    maker = make_blocks(NATIVE, HEAD, SEED, BuildOptions(), NOW)
    with pytest.raises((TypeError, OverflowError)):
        maker.add(columns)


@needs_native
def test_columns_of_different_lengths_are_refused() -> None:
    maker = make_blocks(NATIVE, HEAD, SEED, BuildOptions(), NOW)
    with pytest.raises(InvariantError):
        maker.add(Columns([b"k"], [1], [], [0], [b"v"]))
