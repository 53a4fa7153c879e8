"""A seal opens in its own file, as what it is, at its place, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from meles.engine.codec.header import MAGIC_TABLE, MAGIC_WAL, FileHeader
from meles.engine.crypt.file_cipher import FileCipher, SealBroken, What

KEY = bytes(range(32))
HEADER = FileHeader(MAGIC_TABLE, 7, key_id=1, salt=b"s" * 16)
CIPHER = FileCipher(KEY, HEADER)
SEALED = CIPHER.seal(b"data", What.BLOCK, 64, b"more", 3)


def test_it_opens_as_it_was_sealed() -> None:
    again = FileCipher(KEY, HEADER)
    assert again.open(SEALED, What.BLOCK, 64, b"more", 3) == b"data"
    assert b"data" not in SEALED
    assert len(SEALED) == 4 + 16


@pytest.mark.parametrize(
    "args",
    [
        (What.INDEX, 64, b"more", 3), (What.BLOCK, 65, b"more", 3),
        (What.BLOCK, 64, b"mor", 3), (What.BLOCK, 64, b"more", 4),
    ],
)  # fmt: skip
def test_it_opens_as_nothing_else(args: tuple[What, int, bytes, int]) -> None:
    with pytest.raises(SealBroken):
        CIPHER.open(SEALED, *args)


@pytest.mark.parametrize(
    "header",
    [
        replace(HEADER, magic=MAGIC_WAL), replace(HEADER, file_id=8),
        replace(HEADER, salt=b"t" * 16),
    ],
)  # fmt: skip
def test_it_opens_in_no_other_file(header: FileHeader) -> None:
    other = FileCipher(KEY, header)
    with pytest.raises(SealBroken):
        other.open(SEALED, What.BLOCK, 64, b"more", 3)
    assert other.mark(b"end", What.LOG_END, 1) != CIPHER.mark(b"end", What.LOG_END, 1)


def test_no_bit_can_be_changed() -> None:
    for bit in range(8 * len(SEALED)):
        wrong = bytearray(SEALED)
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealBroken):
            CIPHER.open(bytes(wrong), What.BLOCK, 64, b"more", 3)
    with pytest.raises(SealBroken):
        CIPHER.open(b"", What.BLOCK, 64, b"more", 3)


def test_a_random_nonce_is_another_each_time() -> None:
    sealed = [CIPHER.seal_again(b"data", What.MANIFEST_RECORD, 1) for _ in range(100)]
    assert len({one[:12] for one in sealed}) == 100
    assert {CIPHER.open_again(one, What.MANIFEST_RECORD, 1) for one in sealed} == {b"data"}
    for wrong in (sealed[0][:-1], sealed[0][:27], b""):
        with pytest.raises(SealBroken):
            CIPHER.open_again(wrong, What.MANIFEST_RECORD, 1)
    with pytest.raises(SealBroken):
        CIPHER.open_again(sealed[0], What.MANIFEST_RECORD, 2)
