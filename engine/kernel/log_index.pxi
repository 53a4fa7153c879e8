# The memtable's index over its mapped write-ahead log, and the append end of that log.
#
# The Python twin is memtable/log_index.py; the bytes are those of engine/log/FORMAT.md. Slots hold
# (hash << 32 | offset of the newest record); keys are compared in the log, so an entry costs 8 bytes
# here and no Python object. The table is allocated for a full memtable at once: untouched pages of it
# cost nothing, and no writer ever waits for it to grow in the usual case.
#
# Guarded by the GIL: no method gives it up between reading the table and using what it found.

cdef enum:
    FRAME_BYTES = 24             # length, checksum; timestamp, records, kind, zero
    PREFIX_BYTES = 8
    BODY_BYTES = 16
    RECORD_BYTES = 28            # version, expiry, value bytes, previous, key bytes, meta, user
    KIND_TXN = 1
    LOG_HEADER_BYTES = 64
    LEAST_SLOTS = 256
    ENTRY_GUESS = 96             # bytes of log that an entry takes in a memtable of small entries
    KEYS_AHEAD = 8               # of a transaction: their slots are asked for
    VALUE_HEAD_BYTES = 16        # of a value-log entry: checksum, value bytes, version
    POINTER_BYTES = 12           # logical file, offset, value bytes

cdef uint64_t MOST_LOG_BYTES = 0xFFFFFFFF        # offsets have 32 bits
cdef Py_ssize_t NO_LIMIT = 0x7FFFFFFFFFFFFFFF

cdef uint64_t _hash_seed = int.from_bytes(_urandom(8), "little")


cdef inline void write_record(
    uint8_t* at, uint64_t version, uint64_t expiry, uint32_t value_size, uint32_t previous,
    uint16_t key_size, uint8_t meta, uint8_t user,
) noexcept nogil:
    store64(at, version)
    store64(at + 8, expiry)
    store32(at + 16, value_size)
    store32(at + 20, previous)
    store16(at + 24, key_size)
    at[26] = meta
    at[27] = user


cdef inline uint64_t check_sizes(key, value) except 0xFFFFFFFFFFFFFFFF:
    """Bytes of a record's key and value, which its fields must be able to hold."""
    if not PyBytes_CheckExact(key) or not PyBytes_CheckExact(value):
        raise TypeError("keys and values are bytes")
    if PyBytes_GET_SIZE(key) > 0xFFFF or PyBytes_GET_SIZE(value) > 0xFFFFFFFF:
        raise OverflowError("key or value is larger than a record holds")
    return PyBytes_GET_SIZE(key) + PyBytes_GET_SIZE(value)


cdef inline uint64_t plain_number(number) except? 0xFFFFFFFFFFFFFFFF:
    """An int that no code of its own can change between two looks."""
    if type(number) is not int:
        raise TypeError("numbers are int")
    return number


cdef inline list listed(column):
    return column if type(column) is list else list(column)


@cython.no_gc
cdef class LogIndex:
    """Key to newest record. One thread at a time appends, any number reads."""

    cdef Py_buffer _view
    cdef bint _held
    cdef uint8_t* _base
    cdef uint64_t _room              # bytes that may be written; 0 when sealed or replayed
    cdef uint64_t _size              # bytes that may be read
    cdef uint32_t _seed
    cdef uint64_t _gap               # bytes kept free behind every frame, a multiple of 8
    cdef uint64_t* _slots
    cdef uint64_t _mask
    cdef Py_ssize_t _used
    cdef uint64_t _taken             # up to where `take_fresh` has walked
    cdef readonly object map
    cdef readonly uint64_t end       # of what may be read; never above `_size`
    cdef public uint64_t records
    cdef public uint64_t last_ts
    cdef public bint ordered

    def __cinit__(
        self, mapping, uint64_t end, uint32_t seed, *, bint writable=False, uint64_t expected=0,
        uint64_t gap=0,
    ):
        """Over a log whose frames end at `end`. `expected` is the log's size when it is full; `gap`
        bytes stay free behind every frame.
        """
        cdef uint64_t slots = LEAST_SLOTS
        self._held = False
        expected = min(expected, MOST_LOG_BYTES)
        while slots * 7 < expected // ENTRY_GUESS * 10:
            slots *= 2
        self._slots = <uint64_t*>calloc(slots, sizeof(uint64_t))
        if self._slots == NULL:
            raise MemoryError
        self._mask = slots - 1
        self._seed = seed
        if gap & 7 or gap > 64:
            raise ValueError("frames begin at multiples of 8")
        self._gap = gap
        self._taken = LOG_HEADER_BYTES
        self.ordered = True
        self._hold(mapping, writable)
        if end > self._size or (writable and end & 7):
            raise ValueError("frames end inside the log, at a multiple of 8")
        self.end = end

    cdef _hold(self, mapping, bint writable):
        cdef Py_buffer view
        PyObject_GetBuffer(mapping, &view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
        if (
            <uint64_t>view.len < self._size or <uint64_t>view.len > MOST_LOG_BYTES
            or (writable and <uint64_t>view.len < self._gap)
        ):
            PyBuffer_Release(&view)
            raise ValueError("the mapping is smaller than the log, or larger than offsets reach")
        if self._held:
            PyBuffer_Release(&self._view)
        self._view = view
        self._held = True
        self._base = <uint8_t*>view.buf
        self._size = view.len
        self._room = self._size - self._gap if writable else 0
        self.map = mapping

    def rebase(self, mapping):
        """Go on in a larger mapping of the same log."""
        self._hold(mapping, True)

    def seal(self, uint64_t end):
        """No more appends; the log ends at `end`."""
        if end > self._size:
            raise ValueError("a log ends inside its mapping")
        self._room = 0
        self.end = end

    def release(self):
        """Let go of the mapping: there is nothing here any more."""
        memset(self._slots, 0, (self._mask + 1) * sizeof(uint64_t))
        self._used = 0
        self._room = self._size = self.end = 0
        self.map = b""
        if self._held:
            self._held = False
            PyBuffer_Release(&self._view)

    def __dealloc__(self):
        if self._held:
            PyBuffer_Release(&self._view)
        free(self._slots)

    def __len__(self):
        return self._used

    # -- the table -------------------------------------------------------------------------------

    cdef inline uint64_t* _slot(self, const uint8_t* key, size_t size, uint32_t tag) noexcept nogil:
        """The key's slot, or the empty one it would take."""
        cdef uint64_t at = tag & self._mask
        cdef uint64_t slot
        cdef const uint8_t* record
        while True:
            slot = self._slots[at]
            if not slot:
                return self._slots + at
            if <uint32_t>(slot >> 32) == tag:
                record = self._base + <uint32_t>slot
                if load16(record + 24) == size and memcmp(record + RECORD_BYTES, key, size) == 0:
                    return self._slots + at
            at = (at + 1) & self._mask

    cdef bint _make_room(self, Py_ssize_t count) except False:
        """Have slots for `count` keys more."""
        cdef uint64_t slots = self._mask + 1, wanted, at, slot, nth
        cdef uint64_t* table
        wanted = slots
        while (<uint64_t>self._used + count) * 10 > wanted * 7:
            wanted *= 2
        if wanted == slots:
            return True
        table = <uint64_t*>calloc(wanted, sizeof(uint64_t))
        if table == NULL:
            raise MemoryError
        for nth in range(slots):
            slot = self._slots[nth]
            if slot:
                at = (slot >> 32) & (wanted - 1)
                while table[at]:
                    at = (at + 1) & (wanted - 1)
                table[at] = slot
        free(self._slots)
        self._slots = table
        self._mask = wanted - 1
        return True

    cdef inline uint32_t _offset_of(self, const uint8_t* key, size_t size) noexcept nogil:
        """Offset of the key's newest record, 0 when there is none."""
        return <uint32_t>self._slot(key, size, key_tag(key, size, _hash_seed))[0]

    def add(self, bytes key not None, uint64_t offset):
        """Index a record that is in the log already; the offset of the one before it, or 0."""
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(key)
        cdef size_t size = PyBytes_GET_SIZE(key)
        cdef uint32_t tag = key_tag(at, size, _hash_seed)
        cdef uint64_t* slot
        cdef uint32_t previous
        cdef Entry entry
        if (
            offset < LOG_HEADER_BYTES or not self._entry_at(offset, &entry)
            or entry.key_size != size or memcmp(entry.key, at, size) != 0
        ):
            raise ValueError("the log does not hold that record")
        self._make_room(1)
        slot = self._slot(at, size, tag)
        previous = <uint32_t>slot[0]
        self._used += not previous
        self.records += 1
        slot[0] = <uint64_t>tag << 32 | offset
        return previous

    # -- writing ---------------------------------------------------------------------------------

    cdef inline void _publish_frame(self, uint64_t length, uint64_t ts, uint32_t count) noexcept nogil:
        """The body at `end` is whole but for its head: write that, then length and checksum."""
        cdef uint8_t* body = self._base + self.end + PREFIX_BYTES
        store64(body, ts)
        store32(body + 8, count)
        store32(body + 12, KIND_TXN)
        publish64(
            self._base + self.end,
            <uint64_t>crc32c_extend(body, length, self._seed ^ <uint32_t>length) << 32 | length,
        )
        self.end = (self.end + PREFIX_BYTES + length + self._gap + 7) & ~<uint64_t>7
        self.records += count

    cdef inline bint has_room(self, uint64_t size) noexcept nogil:
        """Whether a transaction of one record with so many bytes of key and value fits."""
        return self.end + FRAME_BYTES + RECORD_BYTES + size <= self._room

    cdef inline bint has_room_for(self, Py_ssize_t records, uint64_t size) noexcept nogil:
        """Whether a transaction of so many records with so many bytes of keys and values fits."""
        return self.end + FRAME_BYTES + RECORD_BYTES * <uint64_t>records + size <= self._room

    cdef bint append(
        self, const uint8_t* key, size_t key_size, const uint8_t* value, size_t value_size,
        uint8_t meta, uint8_t user, uint64_t expiry, uint64_t ts,
    ) except -1:
        """A transaction of one record; False when it does not fit the mapping."""
        cdef uint64_t length = BODY_BYTES + RECORD_BYTES + key_size + value_size
        cdef uint64_t offset = self.end + FRAME_BYTES
        cdef uint8_t* record = self._base + offset
        cdef uint32_t tag
        cdef uint64_t* slot
        if self.end + PREFIX_BYTES + length > self._room:
            return False
        if self._used * 10 + 10 > <Py_ssize_t>(self._mask * 7):
            self._make_room(1)
        tag = key_tag(key, key_size, _hash_seed)
        slot = self._slot(key, key_size, tag)
        write_record(record, ts, expiry, value_size, <uint32_t>slot[0], key_size, meta, user)
        memcpy(record + RECORD_BYTES, key, key_size)
        memcpy(record + RECORD_BYTES + key_size, value, value_size)
        self._publish_frame(length, ts, 1)
        self._used += not slot[0]
        slot[0] = <uint64_t>tag << 32 | offset
        return True

    def put(
        self, bytes key not None, bytes value not None, uint8_t meta, uint8_t user, uint64_t expiry,
        uint64_t ts,
    ):
        """Append a transaction of one record; False when the mapping has no room for it."""
        check_sizes(key, value)
        return self.append(
            <const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key),
            <const uint8_t*>PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value),
            meta, user, expiry, ts,
        )

    cdef inline uint64_t _add_record(
        self, uint64_t offset, const uint8_t* key_at, size_t key_size, uint32_t tag,
        const uint8_t* value_at, size_t value_size, uint32_t meta, uint64_t expiry, uint64_t version,
    ) noexcept:
        """Write and index one record of a frame under way; where the next one begins."""
        cdef uint64_t* slot = self._slot(key_at, key_size, tag)
        cdef uint32_t previous = <uint32_t>slot[0]
        cdef uint8_t* record = self._base + offset
        if previous and load64(self._base + previous) >= version:
            self.ordered = False
        write_record(record, version, expiry, value_size, previous, key_size, meta & 0xFF, meta >> 8)
        memcpy(record + RECORD_BYTES, key_at, key_size)
        memcpy(record + RECORD_BYTES + key_size, value_at, value_size)
        self._used += not previous
        slot[0] = <uint64_t>tag << 32 | offset
        return offset + RECORD_BYTES + key_size + value_size

    def put_many(self, keys, values, metas, expiries, uint64_t ts, versions=None):
        """Append one transaction; False when the mapping has no room for it.

        Without `versions` each key occurs once and has version `ts`. The index is changed before the
        frame is published, which nobody sees: the GIL is held.
        """
        cdef list key_list = listed(keys), value_list = listed(values), meta_list = listed(metas)
        cdef list expiry_list = listed(expiries)
        cdef list version_list = None if versions is None else listed(versions)
        cdef bytes key, value
        cdef Py_ssize_t count = len(key_list), nth
        cdef uint64_t length = BODY_BYTES + RECORD_BYTES * <uint64_t>count
        cdef uint64_t offset = self.end + FRAME_BYTES
        if not (
            len(value_list) == len(meta_list) == len(expiry_list) == count
            and (version_list is None or len(version_list) == count)
        ):
            raise ValueError("columns differ in length")
        for nth in range(count):                 # nothing is written before all of it is known good
            length += check_sizes(key_list[nth], value_list[nth])
            if plain_number(meta_list[nth]) > 0xFFFF:
                raise OverflowError("meta has two bytes")
            plain_number(expiry_list[nth])
            if version_list is not None:
                plain_number(version_list[nth])
        if self.end + PREFIX_BYTES + length > self._room:
            return False
        self._make_room(count)
        for nth in range(count):
            key, value = key_list[nth], value_list[nth]
            offset = self._add_record(
                offset, <const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key),
                key_tag(<const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), _hash_seed),
                <const uint8_t*>PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value), meta_list[nth],
                expiry_list[nth], ts if version_list is None else version_list[nth],
            )
        self._publish_frame(length, ts, count)
        return True

    def put_plain(self, dict entries not None, uint64_t ts):
        """`put_many` of plain entries, key to value."""
        return self.put_dict(entries, ts, NO_LIMIT, 0, 0)

    cdef bint put_dict(
        self, dict entries, uint64_t ts, Py_ssize_t limit, uint32_t file_id, uint64_t address
    ) except -1:
        """As `put_plain`; values of `limit` bytes or more lie one after the other in a value-log file,
        their entries from `address` on.
        """
        cdef Py_ssize_t place = 0, place_ahead = 0, done = 0, ahead = 0, key_size, size
        cdef uint64_t length = BODY_BYTES + RECORD_BYTES * len(entries)
        cdef uint64_t offset = self.end + FRAME_BYTES
        cdef uint32_t tags[KEYS_AHEAD]
        cdef uint8_t pointer[POINTER_BYTES]
        cdef const uint8_t* key_at
        cdef PyObject* key
        cdef PyObject* value
        while PyDict_Next(entries, &place, &key, &value):
            size = check_sizes(<object>key, <object>value)
            if PyBytes_GET_SIZE(<object>value) >= limit:
                size += POINTER_BYTES - PyBytes_GET_SIZE(<object>value)
            length += size
        if self.end + PREFIX_BYTES + length > self._room:
            return False
        self._make_room(len(entries))
        place = 0
        while True:
            # The slot of a key is where none was lately: ask for it while others are written.
            while ahead < done + KEYS_AHEAD and PyDict_Next(entries, &place_ahead, &key, NULL):
                key_at = <const uint8_t*>PyBytes_AS_STRING(<object>key)
                tags[ahead % KEYS_AHEAD] = key_tag(key_at, PyBytes_GET_SIZE(<object>key), _hash_seed)
                prefetch(self._slots + (tags[ahead % KEYS_AHEAD] & self._mask))
                ahead += 1
            if not PyDict_Next(entries, &place, &key, &value):
                break
            key_at = <const uint8_t*>PyBytes_AS_STRING(<object>key)
            key_size = PyBytes_GET_SIZE(<object>key)
            size = PyBytes_GET_SIZE(<object>value)
            if size < limit:
                offset = self._add_record(
                    offset, key_at, key_size, tags[done % KEYS_AHEAD],
                    <const uint8_t*>PyBytes_AS_STRING(<object>value), size, 0, 0, ts,
                )
            else:
                store32(pointer, file_id)
                store32(pointer + 4, address)
                store32(pointer + 8, size)
                address += VALUE_HEAD_BYTES + size
                offset = self._add_record(
                    offset, key_at, key_size, tags[done % KEYS_AHEAD], pointer, POINTER_BYTES,
                    META_POINTER, 0, ts,
                )
            done += 1
        self._publish_frame(length, ts, done)
        return True

    # -- reading ---------------------------------------------------------------------------------

    cdef inline bint _entry_at(self, uint64_t offset, Entry* out) noexcept nogil:
        """The record there; False when none of the log can be. What it points to is good until the
        GIL is given up.
        """
        cdef const uint8_t* record
        if offset > self.end or self.end - offset < RECORD_BYTES:
            return False
        record = self._base + offset
        out.version = load64(record)
        out.expiry = load64(record + 8)
        out.value_size = load32(record + 16)
        out.key_size = load16(record + 24)
        out.meta = record[26] | <uint32_t>record[27] << 8
        out.key = record + RECORD_BYTES
        out.value = out.key + out.key_size
        return (
            out.key_size + out.value_size <= self.end - offset - RECORD_BYTES
            and load32(record + 20) < offset     # so that every chain ends
        )

    cdef inline uint32_t _step(self, uint32_t offset, Entry* out) except? 0xFFFFFFFF:
        """Read the record there; the offset of the one before it, or 0."""
        if not self._entry_at(offset, out):
            raise ValueError(f"the log has no record at {offset}")
        return load32(self._base + offset + 20)

    cdef bint find(self, const uint8_t* key, size_t size, uint64_t ts, Entry* out) except -1:
        """The newest version <= ts. What it points to is good until the GIL is given up."""
        cdef uint32_t offset
        cdef Entry entry
        cdef bint found = False
        if not self._used:
            return False
        offset = self._offset_of(key, size)
        while offset and self.ordered:
            offset = self._step(offset, out)
            if out.version <= ts:
                return True
        while offset:
            offset = self._step(offset, &entry)
            if entry.version <= ts and (not found or entry.version > out.version):
                out[0] = entry
                found = True
        return found

    def get(self, bytes key not None, uint64_t ts):
        """The newest version <= ts: (version, user << 8 | meta, expiry ms, value), or None."""
        cdef Entry entry
        if not self.find(<const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), ts, &entry):
            return None
        return found_tuple(&entry)

    def offset_of(self, bytes key not None):
        """Offset of the key's newest record, 0 when there is none."""
        return self._offset_of(<const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))

    def chain(self, bytes key not None):
        """All versions of a key as `get` gives them, latest written first."""
        cdef uint32_t offset = self.offset_of(key)
        cdef Entry entry
        cdef list found = []
        while offset:
            offset = self._step(offset, &entry)
            found.append(found_tuple(&entry))
        return found

    def newest(self, list keys not None, uint64_t ts):
        """Versions, metas, expiries and values of the keys' newest records, each a list.

        None when that is not what a reader at `ts` sees of them.
        """
        cdef list versions = [], metas = [], expiries = [], values = []
        cdef bytes key
        cdef Entry entry
        cdef uint32_t offset
        if not self.ordered:
            return None
        for key in keys:
            if key is None:
                raise TypeError("keys are bytes")
            offset = self._offset_of(<const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
            if not offset:
                raise KeyError("a key that is not in the log")
            self._step(offset, &entry)
            if entry.version > ts:
                return None
            versions.append(entry.version)
            metas.append(entry.meta)
            expiries.append(entry.expiry)
            values.append(value_bytes(&entry))
        return versions, metas, expiries, values

    def take_fresh(self):
        """The keys that are new since the last call, in the order they came."""
        cdef list keys = []
        cdef uint64_t at = self._taken, record
        cdef uint32_t length, count
        cdef Entry entry
        while at + FRAME_BYTES <= self.end:
            length = load32(self._base + at)
            count = load32(self._base + at + PREFIX_BYTES + 8)
            record = at + FRAME_BYTES
            while count and self._entry_at(record, &entry):
                if not load32(self._base + record + 20):
                    keys.append(PyBytes_FromStringAndSize(<const char*>entry.key, entry.key_size))
                record += RECORD_BYTES + entry.key_size + entry.value_size
                count -= 1
            at = (at + PREFIX_BYTES + length + self._gap + 7) & ~<uint64_t>7
        self._taken = at
        return keys
