# Cuts entries in order into blocks (the Python twin is table/block_maker.py).
#
# An entry's bytes are copied into the columns of the block in hand, so whoever brought it may let go
# of it at once. `put` needs no GIL, except that a codec is asked with it: those are Python libraries.

cdef enum:
    ENTRY_BYTES = 16             # what a block needs for an entry beside key and value
    VLOG_ENTRY_HEADER_BYTES = 16

cdef enum:                       # why `put` refused; what follows is refused for the same reason
    PUT_DONE = 0
    PUT_DISORDER = 1
    PUT_EMPTY_KEY = 2
    PUT_BAD_POINTER = 3
    PUT_TOO_LARGE = 4
    PUT_NO_MEMORY = 5
    PUT_RAISED = 6               # a Python exception, kept in `_error`

cdef dict REFUSALS = {
    PUT_DISORDER: "entries for a table are not in order",
    PUT_EMPTY_KEY: "a table holds no empty key",
    PUT_BAD_POINTER: "a value pointer does not have 12 bytes",
    PUT_TOO_LARGE: "a block would grow beyond 4 GiB",
}

cdef uint8_t[BLOCK_HEAD_BYTES] ZEROS
memset(ZEROS, 0, BLOCK_HEAD_BYTES)

cdef struct FileTally:
    uint64_t bytes
    uint64_t entries
    uint32_t file_id


cdef class BlockMaker:
    """Takes entries, gives finished blocks. Not thread-safe."""

    cdef uint32_t _seed
    cdef uint64_t _block_size
    cdef uint64_t _batch_bytes
    cdef uint64_t _now_ms
    cdef object _pack
    cdef object _refuse
    cdef object _error
    cdef int _refused
    # the block in hand
    cdef uint32_t _entries
    cdef uint64_t _raw                  # its keys and values, ENTRY_BYTES more for each entry
    cdef uint32_t _metas_seen
    cdef bint _expires
    cdef bint _multi
    cdef uint64_t _max_version
    cdef uint64_t _min_version
    cdef uint64_t _last_version
    cdef size_t _last_key               # where in `_keys` the last key begins
    cdef Buffer _versions
    cdef Buffer _expiries
    cdef Buffer _key_words
    cdef Buffer _value_words
    cdef Buffer _metas
    cdef Buffer _users
    cdef Buffer _keys
    cdef Buffer _values
    # finished blocks
    cdef Buffer _out
    cdef uint64_t _taken_to             # where in the file `_out` begins
    cdef uint64_t _measured             # `size` as of the last measuring, and what came since
    cdef uint64_t _pending
    # the index, a row per block
    cdef uint32_t _blocks
    cdef Buffer _row_offsets
    cdef Buffer _row_max_versions
    cdef Buffer _row_sizes
    cdef Buffer _row_entries
    cdef Buffer _row_key_words
    cdef Buffer _row_flags
    cdef Buffer _row_keys
    # the table
    cdef public Py_ssize_t count
    cdef Buffer _hashes
    cdef Buffer _first_key
    cdef uint64_t _table_max
    cdef uint64_t _table_min
    cdef uint64_t _tombstones
    cdef uint64_t _expiring
    cdef Buffer _to_come                # when entries will expire
    cdef uint64_t _stale_bytes
    cdef uint64_t _raw_bytes
    cdef Buffer _files                  # FileTally, ascending
    cdef size_t _last_file

    def __init__(
        self, bytes head not None, uint32_t seed, uint64_t block_size, uint64_t batch_bytes, pack,
        uint64_t now_ms, refuse,
    ):
        """`head` begins the file; `pack(payload)` gives (codec, packed bytes) or None;
        `refuse(what)` makes an error."""
        if self._measured:
            raise RuntimeError("a table is built once")
        self._seed = seed
        self._block_size = block_size
        self._batch_bytes = batch_bytes
        self._pack = pack
        self._now_ms = now_ms
        self._refuse = refuse
        self._measured = len(head)
        self._table_min = <uint64_t>-1
        if not (
            append(&self._out, PyBytes_AS_STRING(head), len(head))
            and append32(&self._row_key_words, 0)
            and self._begin()
        ):
            raise MemoryError

    def __dealloc__(self):
        drop(&self._versions)
        drop(&self._expiries)
        drop(&self._key_words)
        drop(&self._value_words)
        drop(&self._metas)
        drop(&self._users)
        drop(&self._keys)
        drop(&self._values)
        drop(&self._out)
        drop(&self._row_offsets)
        drop(&self._row_max_versions)
        drop(&self._row_sizes)
        drop(&self._row_entries)
        drop(&self._row_key_words)
        drop(&self._row_flags)
        drop(&self._row_keys)
        drop(&self._hashes)
        drop(&self._first_key)
        drop(&self._files)
        drop(&self._to_come)

    @property
    def size(self):
        """Where the blocks end in the file, those still pending at their uncompressed size."""
        return self.measured()

    @property
    def ready(self):
        """Bytes of the file that `take` would give."""
        return self._out.size

    cdef inline uint64_t measured(self) noexcept nogil:
        return self._measured + self._pending

    # -- entries ---------------------------------------------------------------------------------

    def add(self, columns):
        """Append entries; all keys and versions must come after those added before."""
        cdef list keys = columns.keys, versions = columns.versions, metas = columns.metas
        cdef list expiries = columns.expiries, values = columns.values
        cdef Py_ssize_t nth, total = len(keys)
        cdef bytes key, value
        cdef Entry entry
        if not len(versions) == len(metas) == len(expiries) == len(values) == total:
            raise self._refuse("columns of different lengths")
        for nth in range(total):
            key = keys[nth]
            value = values[nth]
            if key is None or value is None:
                raise TypeError("a key or a value is None")
            entry.key = <const uint8_t*>PyBytes_AS_STRING(key)
            entry.key_size = PyBytes_GET_SIZE(key)
            entry.value = <const uint8_t*>PyBytes_AS_STRING(value)
            entry.value_size = PyBytes_GET_SIZE(value)
            entry.version = versions[nth]
            entry.meta = <uint16_t>metas[nth]
            entry.expiry = expiries[nth]
            if self.put(&entry) != PUT_DONE:
                self.raise_refusal()

    cdef raise_refusal(self):
        if self._refused == PUT_NO_MEMORY:
            raise MemoryError
        if self._refused == PUT_RAISED:
            raise self._error
        raise self._refuse(REFUSALS[self._refused])

    cdef int put(self, const Entry* entry) noexcept nogil:
        """Append an entry: PUT_DONE, or why not."""
        if self._refused == PUT_DONE:
            self._refused = self._put(entry)
        return self._refused

    cdef bint holds(self, const Entry* entry) noexcept nogil:
        """Whether the entry put last has this key and version."""
        return self._entries and entry.version == self._last_version and not key_compare(
            self._keys.data + self._last_key, self._keys.size - self._last_key,
            entry.key, entry.key_size,
        )

    cdef int _put(self, const Entry* entry) noexcept nogil:
        cdef bint same = False
        cdef int order, status
        if self._entries:
            order = key_compare(
                self._keys.data + self._last_key, self._keys.size - self._last_key,
                entry.key, entry.key_size,
            )
            same = order == 0
            if order > 0 or (same and entry.version >= self._last_version):
                return PUT_DISORDER
            if self._raw >= self._block_size:
                status = self._close(same)
                if status != PUT_DONE:
                    return status
            elif same:
                self._multi = True
        elif not entry.key_size:
            return PUT_EMPTY_KEY
        elif not append(&self._first_key, entry.key, entry.key_size):
            return PUT_NO_MEMORY
        if not same and not append64(&self._hashes, xxh64(entry.key, entry.key_size)):
            return PUT_NO_MEMORY
        status = self._account(entry, same)
        if status != PUT_DONE:
            return status
        return self._collect(entry)

    cdef inline int _collect(self, const Entry* entry) noexcept nogil:
        """Append to the columns of the block in hand."""
        cdef uint64_t cost = entry.key_size + entry.value_size + ENTRY_BYTES
        if self._keys.size + self._values.size + cost > <uint32_t>-1:
            return PUT_TOO_LARGE
        self._last_key = self._keys.size
        self._last_version = entry.version
        if not (
            append64(&self._versions, entry.version)
            and append64(&self._expiries, entry.expiry)
            and append8(&self._metas, entry.meta & 0xFF)
            and append8(&self._users, entry.meta >> 8)
            and append(&self._keys, entry.key, entry.key_size)
            and append(&self._values, entry.value, entry.value_size)
            and append32(&self._key_words, self._keys.size)
            and append32(&self._value_words, self._values.size)
        ):
            return PUT_NO_MEMORY
        if entry.version > self._max_version:
            self._max_version = entry.version
        if entry.version < self._min_version:
            self._min_version = entry.version
        self._metas_seen |= entry.meta
        self._expires |= entry.expiry != 0
        self._entries += 1
        self._raw += cost
        self._pending += cost
        if self._pending >= self._batch_bytes:       # the points the Python twin measures at
            self._measured = self._taken_to + self._out.size
            self._pending = self._raw
        return PUT_DONE

    # -- what the table's properties say ---------------------------------------------------------

    cdef inline int _account(self, const Entry* entry, bint same) noexcept nogil:
        cdef bint tombstone = entry.meta & META_DELETE
        self.count += 1
        self._raw_bytes += entry.key_size + entry.value_size
        self._tombstones += tombstone
        self._expiring += entry.expiry != 0
        if same or tombstone or 0 < entry.expiry <= self._now_ms:
            self._stale_bytes += entry.key_size + entry.value_size + ENTRY_BYTES
        if entry.expiry > self._now_ms and not append64(&self._to_come, entry.expiry):
            return PUT_NO_MEMORY
        if entry.meta & META_POINTER:
            return self._tally_pointer(entry)
        return PUT_DONE

    cdef int _tally_pointer(self, const Entry* entry) noexcept nogil:
        cdef FileTally* tally
        cdef FileTally fresh
        cdef uint32_t file_id
        cdef size_t low = 0, high = self._files.size // sizeof(FileTally), middle
        if entry.value_size != POINTER_BYTES:
            return PUT_BAD_POINTER
        file_id = load32(entry.value)
        tally = <FileTally*>self._files.data
        if not high or tally[self._last_file].file_id != file_id:
            while low < high:
                middle = (low + high) >> 1
                if tally[middle].file_id < file_id:
                    low = middle + 1
                else:
                    high = middle
            high = self._files.size // sizeof(FileTally)
            if low == high or tally[low].file_id != file_id:
                fresh.file_id = file_id
                fresh.bytes = fresh.entries = 0
                if not append(&self._files, &fresh, sizeof(FileTally)):
                    return PUT_NO_MEMORY
                tally = <FileTally*>self._files.data
                memmove(tally + low + 1, tally + low, (high - low) * sizeof(FileTally))
                tally[low] = fresh
            self._last_file = low
        tally[self._last_file].bytes += load32(entry.value + 8) + <uint64_t>VLOG_ENTRY_HEADER_BYTES
        tally[self._last_file].entries += 1
        return PUT_DONE

    # -- blocks ----------------------------------------------------------------------------------

    cdef bint _begin(self) noexcept nogil:
        """An empty block in hand."""
        self._entries = 0
        self._raw = 0
        self._metas_seen = 0
        self._expires = self._multi = False
        self._max_version = 0
        self._min_version = <uint64_t>-1
        self._versions.size = self._expiries.size = self._metas.size = self._users.size = 0
        self._keys.size = self._values.size = self._key_words.size = self._value_words.size = 0
        return append32(&self._key_words, 0) and append32(&self._value_words, 0)

    cdef uint32_t _flags(self, bint continues) noexcept nogil:
        cdef uint32_t flags = FLAG_MULTI if self._multi or continues else 0
        if self._expires:
            flags |= FLAG_EXPIRY
        if self._metas_seen & META_DELETE:
            flags |= FLAG_TOMBSTONE
        if self._metas_seen & META_POINTER:
            flags |= FLAG_POINTER
        if self._metas_seen & 0xFF:
            flags |= FLAG_META
        if self._metas_seen > 0xFF:
            flags |= FLAG_USER
        return flags

    cdef int _close(self, bint continues) noexcept nogil:
        """Finish the block in hand. `continues`: its last key goes on in the next."""
        cdef uint32_t flags = self._flags(continues)
        cdef size_t at = self._out.size
        cdef uint64_t offset = self._taken_to + at
        cdef uint32_t stored, raw
        cdef int status, codec = 0
        if not append(&self._out, ZEROS, BLOCK_HEAD_BYTES) or not self._encode(flags):
            return PUT_NO_MEMORY
        if self._out.size - at - BLOCK_HEAD_BYTES > <uint32_t>-1:
            return PUT_TOO_LARGE
        raw = self._out.size - at - BLOCK_HEAD_BYTES
        if self._pack is not None:
            status = self._compress(at + BLOCK_HEAD_BYTES, &codec)
            if status != PUT_DONE:
                return status
        stored = self._out.size - at - BLOCK_HEAD_BYTES
        store32(self._out.data + at, stored)
        store32(self._out.data + at + 8, raw)
        self._out.data[at + 12] = codec
        store32(
            self._out.data + at + 4,
            crc32c_extend(
                self._out.data + at + 8, <size_t>stored + 8,
                self._seed ^ <uint32_t>offset ^ stored,
            ),
        )
        if not self._add_row(offset, BLOCK_HEAD_BYTES + stored, flags) or not self._begin():
            return PUT_NO_MEMORY
        return PUT_DONE

    cdef bint _encode(self, uint32_t flags) noexcept nogil:
        """Append the payload to what is ready."""
        cdef Buffer* out = &self._out
        return (
            append32(out, self._entries)
            and append16(out, flags)
            and append16(out, 0)
            and append64(out, self._max_version)
            and append64(out, self._min_version)
            and append(out, self._versions.data, self._versions.size)
            and append(out, self._expiries.data, self._expiries.size if flags & FLAG_EXPIRY else 0)
            and append(out, self._key_words.data, self._key_words.size)
            and append(out, self._value_words.data, self._value_words.size)
            and append(out, self._metas.data, self._metas.size if flags & FLAG_META else 0)
            and append(out, self._users.data, self._users.size if flags & FLAG_USER else 0)
            and append(out, self._keys.data, self._keys.size)
            and append(out, self._values.data, self._values.size)
        )

    cdef int _compress(self, size_t start, int* codec) noexcept with gil:
        """Put the packed payload in the place of the one that begins at `start`, if worth it."""
        cdef bytes packed
        try:
            found = self._pack(
                PyBytes_FromStringAndSize(
                    <const char*>self._out.data + start, self._out.size - start
                )
            )
            if found is None:
                return PUT_DONE
            codec[0] = <uint8_t>found[0]
            packed = found[1]
        except BaseException as error:
            self._error = error
            return PUT_RAISED
        self._out.size = start
        if not append(&self._out, PyBytes_AS_STRING(packed), PyBytes_GET_SIZE(packed)):
            return PUT_NO_MEMORY
        return PUT_DONE

    cdef bint _add_row(self, uint64_t offset, uint32_t size, uint32_t flags) noexcept nogil:
        """The block's row of the index."""
        self._blocks += 1
        if self._max_version > self._table_max:
            self._table_max = self._max_version
        if self._min_version < self._table_min:
            self._table_min = self._min_version
        return (
            append64(&self._row_offsets, offset)
            and append64(&self._row_max_versions, self._max_version)
            and append32(&self._row_sizes, size)
            and append32(&self._row_entries, self._entries)
            and append16(&self._row_flags, flags)
            and append(
                &self._row_keys, self._keys.data + self._last_key,
                self._keys.size - self._last_key,
            )
            and append32(&self._row_key_words, self._row_keys.size)
        )

    # -- what the builder takes ------------------------------------------------------------------

    def end(self):
        """Make a block of what is left."""
        if self._refused == PUT_DONE and self._entries:
            self._refused = self._close(False)
        if self._refused != PUT_DONE:
            self.raise_refusal()

    def take(self):
        """Hand out what is ready, to be written where the last such part ended."""
        cdef size_t size = self._out.size
        data = taken_over(&self._out) if size else b""
        self._taken_to += size
        return data

    def tally(self):
        """After `end`: the fields of table/block_maker.Tally."""
        cdef size_t start = load32(self._row_key_words.data + 4 * <size_t>(self._blocks - 1))
        cdef FileTally* files = <FileTally*>self._files.data
        cdef size_t nth
        last = self._row_keys.data + start
        return (
            buffer_bytes(&self._first_key),
            PyBytes_FromStringAndSize(<const char*>last, self._row_keys.size - start),
            self._table_min,
            self._table_max,
            self._tombstones,
            self._expiring,
            self._stale_bytes,
            self._raw_bytes,
            tuple([
                (files[nth].file_id, files[nth].bytes, files[nth].entries)
                for nth in range(self._files.size // sizeof(FileTally))
            ]),
        )

    def expiries(self):
        """When entries will expire, in no order."""
        return memoryview(buffer_bytes(&self._to_come)).cast("Q")

    @property
    def keys(self):
        """Distinct keys."""
        return self._hashes.size // 8

    def filter_lines(self, uint64_t lines, int bits):
        """The filter's lines (kernel.reference.bloom_build)."""
        cdef uint64_t digest
        cdef uint8_t* line
        cdef size_t at
        data = PyBytes_FromStringAndSize(NULL, lines * LINE_BYTES)
        cdef uint8_t* base = <uint8_t*>PyBytes_AS_STRING(data)
        with nogil:
            memset(base, 0, lines * LINE_BYTES)
            for at in range(0, self._hashes.size, 8):
                digest = load64(self._hashes.data + at)
                line = base + LINE_BYTES * (digest % lines)
                set_pattern(line, digest & 4095, bits)
                set_pattern(line, digest >> 52, bits)
        return data

    def index(self):
        """The index section."""
        return b"".join((
            int(self._blocks).to_bytes(8, "little"),     # and a zero word
            buffer_bytes(&self._row_offsets),
            buffer_bytes(&self._row_max_versions),
            buffer_bytes(&self._row_sizes),
            buffer_bytes(&self._row_entries),
            buffer_bytes(&self._row_key_words),
            buffer_bytes(&self._row_flags),
            buffer_bytes(&self._row_keys),
        ))


cdef inline void set_pattern(uint8_t* line, uint64_t number, int bits) noexcept nogil:
    """Set all bits of a pattern (kernel.reference.bloom_patterns)."""
    cdef uint64_t mixed = (number + 1) * PATTERN_MIX
    cdef uint32_t bit
    cdef int nth
    for nth in range(1, bits + 1):
        bit = <uint32_t>(mixed >> (64 - 9 * nth)) & 511
        line[bit >> 3] |= 1 << (bit & 7)
