# The blocks of an open table: index, filter, checksums, point lookups, all without Python objects.
#
# The Python twin is the reading half of table/reader.py. Index and filter are copies, checked once.
# Blocks stored without a codec are read in place in the mapping, their checksum taken again once a
# minute or so (`check_epoch`): data read from the medium anew does not stay unchecked for long.

cdef enum:
    INDEX_HEAD_BYTES = 8
    INDEX_ROW_BYTES = 30         # offset, max version, size, entries, key end, flags
    LINE_BYTES = 64
    BLOCKS_OFFSET = 64           # behind the file's header

cdef uint64_t PATTERN_MIX = 0x9E3779B97F4A7C15ULL


cdef inline bint has_pattern(const uint8_t* line, uint64_t number, int bits) noexcept nogil:
    """Whether all bits of a pattern are set (kernel.reference.bloom_patterns)."""
    cdef uint64_t mixed = (number + 1) * PATTERN_MIX
    cdef uint32_t bit
    cdef int nth
    for nth in range(1, bits + 1):
        bit = <uint32_t>(mixed >> (64 - 9 * nth)) & 511
        if not line[bit >> 3] >> (bit & 7) & 1:
            return False
    return True


@cython.no_gc
cdef class TableBlocks:
    """Blocks by number and entries by key, for one table."""

    cdef Mapped _mapping                # None once closed
    cdef const uint8_t* _base
    cdef uint32_t _seed
    cdef readonly Py_ssize_t count
    cdef bytes _index
    cdef const uint8_t* _offsets        # u64
    cdef const uint8_t* _max_versions   # u64
    cdef const uint8_t* _sizes          # u32, with the block's head
    cdef const uint8_t* _entries        # u32
    cdef const uint8_t* _key_words      # u32, count + 1
    cdef const uint8_t* _flags          # u16
    cdef const uint8_t* _keys
    cdef size_t _keys_size
    cdef KeyHeads _heads                # of the last keys, with offsets and sizes once more
    cdef uint8_t* _checked              # epoch of the last check, 0 = never
    cdef bytes _filter
    cdef const uint8_t* _lines
    cdef uint64_t _line_count
    cdef int _pattern_bits
    cdef object _fetch
    cdef object _damaged
    cdef object _closed
    cdef readonly Py_ssize_t checks     # checksums taken
    cdef bint lasting                   # a view may keep this for as long as it lives
    cdef bint sealed                    # blocks are encrypted: each goes through `fetch`
    cdef object __weakref__

    def __cinit__(
        self, mapping, uint32_t seed, bytes index not None, Py_ssize_t count, uint64_t blocks_end,
        bytes filter not None, int pattern_bits, fetch, damaged, closed,
        bint lasting=True, bint sealed=False, pages=None,
    ):
        """`index` and `filter` are sections whose checksums held; `filter` is its lines alone.

        `fetch(number, scanning)` gives the payload of a block with a codec or a seal; `damaged(what, offset)` makes the
        error to raise, `closed()` that for a table let go of. `ValueError` when the index contradicts itself.
        """
        self._checked = NULL
        self._heads.tops = NULL
        self._base = NULL
        self._parse(index, count, blocks_end)
        self._checked = <uint8_t*>calloc(count, 1)
        if self._checked == NULL:
            raise MemoryError
        if len(filter) % LINE_BYTES or not 0 <= pattern_bits <= 7:
            raise ValueError("filter is not made of lines")
        self._filter = filter
        self._lines = <const uint8_t*>PyBytes_AS_STRING(filter)
        self._line_count = len(filter) // LINE_BYTES
        self._pattern_bits = pattern_bits
        self._seed = seed
        self._fetch = fetch
        self.lasting = lasting
        self.sealed = sealed
        self._damaged = damaged
        self._closed = closed
        self._mapping = Mapped(mapping, pages)
        if blocks_end > self._mapping.size:
            raise ValueError("blocks lie outside the file")
        self._base = self._mapping.base

    cdef _parse(self, bytes index, Py_ssize_t count, uint64_t blocks_end):
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(index)
        cdef uint64_t fixed, expected = BLOCKS_OFFSET
        cdef size_t size, before = 0
        cdef const uint8_t* last = NULL
        cdef const uint8_t* key
        cdef Py_ssize_t nth
        if count < 1 or count > len(index):
            raise ValueError("index does not have the footer's number of blocks")
        fixed = INDEX_HEAD_BYTES + <uint64_t>count * INDEX_ROW_BYTES + 4
        if <uint64_t>len(index) < fixed or load32(at) != <uint64_t>count or load32(at + 4):
            raise ValueError("index does not have the footer's number of blocks")
        self._index = index
        self.count = count
        at += INDEX_HEAD_BYTES
        self._offsets = at
        self._max_versions = self._offsets + 8 * count
        self._sizes = self._max_versions + 8 * count
        self._entries = self._sizes + 4 * count
        self._key_words = self._entries + 4 * count
        self._flags = self._key_words + 4 * count + 4
        self._keys = self._flags + 2 * count
        self._keys_size = len(index) - fixed
        if load32(self._key_words) or load32(self._key_words + 4 * count) != self._keys_size:
            raise ValueError("last keys are out of order")
        for nth in range(count):
            if (
                load64(self._offsets + 8 * nth) != expected or expected > blocks_end
                or self._size(nth) <= BLOCK_HEAD_BYTES
            ):
                raise ValueError("blocks do not join")
            expected += self._size(nth)
            if (
                load32(self._key_words + 4 * nth) > load32(self._key_words + 4 * nth + 4)
                or load32(self._key_words + 4 * nth + 4) > self._keys_size
            ):
                raise ValueError("last keys are out of order")
            key = self.last_key(nth, &size)
            if not size or (last != NULL and key_compare(last, before, key, size) > 0):
                raise ValueError("last keys are out of order")
            last, before = key, size
            if not load32(self._entries + 4 * nth) or self.flags_of(nth) & ~<uint32_t>FLAG_MASK:
                raise ValueError("entry counts or flags are not valid")
        if expected != blocks_end or blocks_end >> 32:
            raise ValueError("blocks do not join")
        key = self.last_key(0, &size)
        last = self.last_key(count - 1, &before)
        if not heads_begin(&self._heads, count, key, size, last, before):
            raise MemoryError
        for nth in range(count):
            key = self.last_key(nth, &size)
            heads_set(
                &self._heads, nth, key, size, <uint32_t>load64(self._offsets + 8 * nth), self._size(nth)
            )

    def __dealloc__(self):
        heads_free(&self._heads)
        free(self._checked)

    @property
    def memory(self):
        """Bytes of what is held beside the mapping."""
        return len(self._index) + len(self._filter) + self.count + self._heads.bytes

    def close(self):
        """What is asked from now on raises `closed()`. The mapping goes, or does with the last reader: a
        scan may be looking at a block of it at this moment.
        """
        self._base = NULL
        self._mapping = None

    # -- the index -------------------------------------------------------------------------------

    cdef inline uint32_t _size(self, Py_ssize_t nth) noexcept nogil:
        return load32(self._sizes + 4 * nth)

    cdef inline uint32_t flags_of(self, Py_ssize_t nth) noexcept nogil:
        return load16(self._flags + 2 * nth)

    cdef inline const uint8_t* last_key(self, Py_ssize_t nth, size_t* size) noexcept nogil:
        cdef uint32_t start = load32(self._key_words + 4 * nth)
        size[0] = load32(self._key_words + 4 * nth + 4) - start
        return self._keys + start

    cdef Py_ssize_t block_for(self, const uint8_t* key, size_t size) noexcept nogil:
        """The first block whose last key is >= `key`; `count` when there is none."""
        cdef size_t low, high, middle, found_size
        cdef const uint8_t* found
        low = heads_find(&self._heads, key, size, &high)
        while low < high:
            middle = (low + high) >> 1
            found = self.last_key(middle, &found_size)
            if key_compare(found, found_size, key, size) < 0:
                low = middle + 1
            else:
                high = middle
        return low

    def extent(self):
        """Entries in all blocks, as the index counts them, and the last block's last key."""
        cdef uint64_t entries = 0
        cdef size_t size
        cdef const uint8_t* key = self.last_key(self.count - 1, &size)
        cdef Py_ssize_t nth
        for nth in range(self.count):
            entries += load32(self._entries + 4 * nth)
        return entries, PyBytes_FromStringAndSize(<const char*>key, size)

    # -- blocks ----------------------------------------------------------------------------------

    cdef object payload(self, Py_ssize_t nth, Payload* out, bint scanning):
        """Open a block's payload; what is returned keeps it readable (None: the mapping does)."""
        cdef const uint8_t* at
        cdef uint64_t offset
        cdef uint32_t size, crc
        cdef uint8_t epoch
        cdef bytes raw
        cdef Mapped hold = self._mapping
        if self._base == NULL:
            raise self._closed()
        offset = heads_place(&self._heads, nth)
        size = heads_size(&self._heads, nth) - BLOCK_HEAD_BYTES
        at = self._base + offset
        if at[12] or load32(at + 8) != size or self.sealed:  # a codec, or damage that looks like one
            raw = self._fetch(nth, scanning)
            if not open_payload(<const uint8_t*>PyBytes_AS_STRING(raw), len(raw), out):
                raise self._damaged("payload header does not fit the payload", offset)
            return raw
        epoch = check_epoch()
        if self._checked[nth] != epoch:
            with nogil:                          # the first touch of a block may wait for the medium
                crc = crc32c_extend(at + 8, size + 8, self._seed ^ <uint32_t>offset ^ size)
            if self._base == NULL or hold is not self._mapping:
                raise self._closed()
            self.checks += 1
            if load32(at) != size or load32(at + 4) != crc:
                raise self._damaged("block checksum does not match", offset)
            self._checked[nth] = epoch
        hold.used(offset, self._size(nth))
        if not open_payload(at + BLOCK_HEAD_BYTES, size, out):
            raise self._damaged("payload header does not fit the payload", offset)
        return None

    cdef raise_disorder(self, Py_ssize_t nth):
        raise self._damaged("offsets are out of order", load64(self._offsets + 8 * nth))

    # -- point lookups ---------------------------------------------------------------------------

    cdef inline void ask(self, uint64_t digest) noexcept nogil:
        """Have the processor fetch what `may_hold` and `block_for` read first."""
        if self._line_count:
            prefetch(self._lines + LINE_BYTES * (digest % self._line_count))
        heads_ask(&self._heads)

    cdef inline void ask_block(self, Py_ssize_t nth) noexcept nogil:
        """As well what a search in a block reads: its head, columns and keys, and of its other end the
        page.
        """
        cdef const uint8_t* at = self._base + heads_place(&self._heads, nth)
        cdef uint32_t size = heads_size(&self._heads, nth)
        prefetch(at + size - 1)
        prefetch_all(at, min(size, <uint32_t>SEARCHED_BYTES))

    cdef inline bint may_hold(self, uint64_t digest) noexcept nogil:
        cdef const uint8_t* line
        if not self._line_count:
            return True
        line = self._lines + LINE_BYTES * (digest % self._line_count)
        return has_pattern(line, digest & 4095, self._pattern_bits) and has_pattern(
            line, digest >> 52, self._pattern_bits
        )

    cdef bint find(self, const uint8_t* key, size_t size, uint64_t ts, Entry* out, list keep) except -1:
        """The newest version <= ts of a key, past the filter. `keep` keeps its bytes readable."""
        return self.find_from(self.block_for(key, size), key, size, ts, out, keep, False)

    cdef bint find_from(
        self, Py_ssize_t nth, const uint8_t* key, size_t size, uint64_t ts, Entry* out, list keep,
        bint asked,
    ) except -1:
        """As `find`, from the key's block on, which was `asked` for."""
        cdef Payload payload
        cdef size_t last_size
        cdef const uint8_t* last
        cdef int found
        while nth < self.count:
            if not asked and self._base != NULL and not self.sealed:
                self.ask_block(nth)
            asked = False
            owner = self.payload(nth, &payload, False)
            found = find_entry(&payload, key, size, ts, out)
            if found > 0:
                if owner is not None:
                    keep.append(owner)
                return True
            if found < 0:
                self.raise_disorder(nth)
            if not self.flags_of(nth) & FLAG_MULTI:
                return False
            last = self.last_key(nth, &last_size)
            if last_size != size or memcmp(last, key, size) != 0:
                return False
            nth += 1
        return False

    def get(self, bytes key not None, uint64_t ts):
        """The newest version <= ts: (version, user << 8 | meta, expiry ms, value), or None."""
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(key)
        cdef size_t size = len(key)
        cdef Entry entry
        cdef list keep = []
        if self._base == NULL:
            raise self._closed()
        if not self.may_hold(xxh64(at, size)) or not self.find(at, size, ts, &entry, keep):
            return None
        return found_tuple(&entry)


cdef inline object value_bytes(const Entry* entry):
    return PyBytes_FromStringAndSize(<const char*>entry.value, entry.value_size)


cdef inline object found_tuple(const Entry* entry):
    return (entry.version, entry.meta, entry.expiry, value_bytes(entry))
