# Values of the value log: read where they lie in a mapped file, and appended to the active one.
#
# The Python twins are `ValueLogFile.fetch` in vlog/reader.py and `ValueLogWriter.append` in
# vlog/writer.py; the bytes are those of engine/vlog/FORMAT.md.

cdef enum:
    SEEDED_BYTES = 20            # pointer and version: what an entry's checksum begins with
    LARGEST_WRITE = 32 << 20     # bytes of values that one transaction writes at once
    LARGEST_PLAIN = 1 << 20      # larger values go the long way
    LARGEST_COPIED = 128 << 10   # larger ones are written by themselves, not copied behind their head
    CHUNK_BYTES = 256 << 10      # copied before they are written, so that they are in the cache still
    LONG_VALUE = 16384           # from here on checking it does without the GIL
    ASKED_BYTES = 2048           # of a value are fetched ahead; what follows, by the checksum's loop
    PAGE_BYTES = 4096            # the smallest there are
    LINES_PARTS = 3


cdef inline size_t asked_bytes(const uint8_t* pointer) noexcept:
    return VALUE_HEAD_BYTES + min(load32(pointer + 8), <uint32_t>ASKED_BYTES)


cdef struct Lines:               # of the processor's caches, to be asked for in parts
    const uint8_t* at            # NULL: nothing
    size_t part


cdef inline void ask_part(Lines* lines) noexcept:
    if lines.at != NULL:
        prefetch_soon(lines.at, lines.part)
        lines.at += lines.part


cdef Mapped mapped_to(mapping, uint64_t end, pages):
    """A mapping of what ends there."""
    cdef Mapped mapped = Mapped(mapping, pages)
    if end > mapped.size:
        raise ValueError("entries end behind the mapping")
    return mapped


@cython.no_gc
cdef class ValueFile:
    """A mapped file of values, for one logical file that lives in it.

    One that is still appended to is mapped as it grows (`reach`); what lies behind is for `beyond`.
    """

    cdef Mapped _mapping             # None once closed, and before there is one
    cdef Mapped _old, _new           # None where nothing was moved
    cdef uint64_t _end               # of the entries that are mapped
    cdef object _beyond              # None: there is nothing behind
    cdef readonly uint32_t logical
    cdef Py_ssize_t _places
    cdef object _damaged
    cdef object _closed

    def __cinit__(
        self, mapping, uint64_t end, uint32_t logical, old, new, damaged, closed, pages=None,
        beyond=None,
    ):
        """`old` and `new` are the offset map's columns (u32), None where nothing was moved.

        `damaged(what, offset)` makes the error to raise, `closed()` that for a file let go of,
        `beyond(pointer, version)` reads what is not mapped yet. Nothing is, if `mapping` is None.
        """
        self._beyond = beyond
        if mapping is not None:
            self._mapping = mapped_to(mapping, end, pages)
            self._end = end
        self.logical = logical
        self._damaged = damaged
        self._closed = closed
        if old is not None:
            self._old, self._new = Mapped(old), Mapped(new)
            self._places = self._old.size // 4
            if self._new.size != self._old.size:
                raise ValueError("columns of different lengths")

    def reach(self, mapping, uint64_t end, pages=None):
        """The file is mapped up to `end` now. Nothing, if it was further already, or closed."""
        cdef Mapped longer = mapped_to(mapping, end, pages)
        cdef Mapped shorter = self._mapping
        if self._beyond is not None and end > self._end:
            self._end = end                      # both at once: letting go of a mapping, which the
            self._mapping = longer               # frame does, may give up the GIL

    def close(self):
        """What is asked from now on raises `closed()`."""
        self._beyond = None                      # before anything is let go of: see `reach`
        self._mapping = self._old = self._new = None
        self._places = 0

    cdef int64_t _place(self, uint32_t offset) noexcept:
        """Where the entry written at `offset` lies now, -1 when it is not kept."""
        cdef const uint8_t* old
        cdef Py_ssize_t low = 0, high = self._places, middle
        if self._old is None:
            return offset
        old = self._old.base
        while low < high:
            middle = (low + high) >> 1
            if load32(old + 4 * middle) < offset:
                low = middle + 1
            else:
                high = middle
        if low < self._places and load32(old + 4 * low) == offset:
            return load32(self._new.base + 4 * low)
        return -1

    cdef object fetch(self, const uint8_t* pointer, uint64_t version):
        """The value at an encoded address, checked under it."""
        cdef int64_t place = self._place(load32(pointer + 4))
        cdef Lines nothing
        nothing.at = NULL
        if self._reaches(place):
            prefetch_all(self._mapping.base + place, asked_bytes(pointer))
        return self.fetch_at(place, pointer, version, &nothing, None)

    cdef inline bint _reaches(self, int64_t place) noexcept:
        return self._mapping is not None and 0 <= place < <int64_t>self._end

    cdef inline void look_up(self, int64_t place, const uint8_t* pointer) noexcept:
        """Have the processor find the pages in which the entry at `place` begins."""
        cdef const uint8_t* first
        cdef const uint8_t* last
        if self._reaches(place):
            first = self._mapping.base + place
            last = first + asked_bytes(pointer) - 1
            prefetch(first)
            if (<size_t>first ^ <size_t>last) >= PAGE_BYTES:
                prefetch(last)

    cdef inline Lines lines(self, int64_t place, const uint8_t* pointer) noexcept:
        """What `fetch_at` will read of it first."""
        cdef Lines lines
        lines.at, lines.part = NULL, 0
        if self._reaches(place):
            lines.at = self._mapping.base + place
            lines.part = (asked_bytes(pointer) + LINE_BYTES) // LINES_PARTS + LINE_BYTES - 1
            lines.part -= lines.part % LINE_BYTES
        return lines

    cdef object fetch_at(
        self, int64_t place, const uint8_t* pointer, uint64_t version, Lines* later, Recycler spare,
    ):
        """As `fetch`, when `_place` was asked already. In the middle of it a part of what is needed
        `later` is asked for. The bytes may be `spare` ones.
        """
        cdef bytes value
        cdef uint8_t* to
        cdef uint32_t offset = load32(pointer + 4), length = load32(pointer + 8), crc
        cdef Mapped hold = self._mapping
        cdef const uint8_t* at
        if self._beyond is not None and <uint64_t>place + VALUE_HEAD_BYTES + length > self._end:
            return self._beyond(
                PyBytes_FromStringAndSize(<const char*>pointer, POINTER_BYTES), version
            )
        if hold is None:
            raise self._closed()
        if place < 0:
            raise self._damaged(f"no value of address {offset} is kept here", 0)
        if place < LOG_HEADER_BYTES or <uint64_t>place + VALUE_HEAD_BYTES + length > self._end:
            raise self._damaged("address lies outside the file", place)
        at = hold.base + place
        if load32(at + 4) != length:
            raise self._damaged("entry has another length than was written", place)
        if load64(at + 8) != version:
            raise self._damaged("entry has another version than was written", place)
        crc = crc32c_extend(pointer, POINTER_BYTES, 0)
        crc = crc32c_extend(at + 8, 8, crc)
        if spare is not None:
            value = spare.take(length)
        else:
            value = PyBytes_FromStringAndSize(NULL, length)
        to = <uint8_t*>PyBytes_AS_STRING(value)
        if length >= LONG_VALUE:
            with nogil:                          # `hold` keeps the mapping
                crc = crc32c_extend_copied(to, at + VALUE_HEAD_BYTES, length, crc)
        else:
            crc = crc32c_extend_copied(to, at + VALUE_HEAD_BYTES, length, crc)
        ask_part(later)
        hold.used(place, VALUE_HEAD_BYTES + length)
        if load32(at) != crc:
            raise self._damaged("value checksum does not match", place)
        return value


@cython.no_gc_clear              # `file_of` lends what is in it
cdef class ValueMap:
    """Values by address: from mapped files here, from all others by a call."""

    cdef dict _files             # logical file to ValueFile
    cdef object _elsewhere

    def __cinit__(self, files, elsewhere):
        """`elsewhere(pointer, version)` reads what no `ValueFile` of `files` holds."""
        self._files = {(<ValueFile?>file).logical: file for file in files}
        self._elsewhere = elsewhere

    cdef inline PyObject* file_of(self, const uint8_t* pointer):
        """Borrowed, and not let go of while this map lives: the ValueFile, or NULL."""
        return PyDict_GetItem(self._files, load32(pointer))

    cdef object read(self, const uint8_t* pointer, size_t size, uint64_t version):
        cdef object file
        if size == POINTER_BYTES:
            file = self._files.get(load32(pointer))
            if file is not None:
                return (<ValueFile>file).fetch(pointer, version)
        return self._elsewhere(PyBytes_FromStringAndSize(<const char*>pointer, size), version)

    def __call__(self, bytes pointer not None, uint64_t version):
        """The value at an encoded address."""
        return self.read(<const uint8_t*>PyBytes_AS_STRING(pointer), len(pointer), version)


cdef ValueMap value_map(values):
    """`values` as a map: one already, or `read(pointer, version)` for all of them."""
    return values if isinstance(values, ValueMap) else ValueMap((), values)


cdef class ValueAppender:
    """The append end of the active value-log file."""

    cdef readonly uint32_t file_id
    cdef public uint64_t end
    cdef public uint64_t entries
    cdef public uint64_t end_limit       # an entry begins before this
    cdef public uint64_t capacity        # and ends at or before this
    cdef public uint64_t entry_limit
    cdef object _pwrite

    def __init__(self, uint32_t file_id, uint64_t end, pwrite):
        """`pwrite(data, offset)` writes all of it or raises."""
        self.file_id = file_id
        self.end = end
        self._pwrite = pwrite

    cdef bint has_room(self, Py_ssize_t size) noexcept:
        return (
            size <= LARGEST_PLAIN and <uint64_t>size <= self.end_limit
            and self.end < self.end_limit and self.entries < self.entry_limit
            and self.end + VALUE_HEAD_BYTES + size <= self.capacity
        )

    def append(self, bytes value not None, uint64_t version):
        """Write one entry; its encoded address. On an error `end` has not moved."""
        cdef uint8_t pointer[POINTER_BYTES]
        self.write(value, version, pointer)
        return PyBytes_FromStringAndSize(<const char*>pointer, POINTER_BYTES)

    cdef bint has_room_for(self, Py_ssize_t count, uint64_t size) noexcept:
        """As `has_room`, for so many values of together so many bytes, heads included."""
        return (
            size <= LARGEST_WRITE and self.end < self.end_limit
            and self.entries + count <= self.entry_limit and self.end + size <= self.capacity
        )

    cdef bint write_large(self, dict values, Py_ssize_t limit, uint64_t version) except False:
        """Write what has `limit` bytes or more, in the dict's order. On an error `end` has not moved.

        `values` are bytes, and nobody else's: writing gives up the GIL.
        """
        cdef Py_ssize_t place = 0, size, copied, used = 0
        cdef uint64_t left = 0, at = self.end, begun = self.end, entries = 0
        cdef PyObject* key
        cdef PyObject* value
        cdef bytes chunk = None
        while PyDict_Next(values, &place, &key, &value):
            if PyBytes_GET_SIZE(<object>value) >= limit:
                left += VALUE_HEAD_BYTES + <uint64_t>PyBytes_GET_SIZE(<object>value)
        place = 0
        while PyDict_Next(values, &place, &key, &value):
            size = PyBytes_GET_SIZE(<object>value)
            if size < limit:
                continue
            copied = VALUE_HEAD_BYTES + (size if size <= LARGEST_COPIED else 0)
            if chunk is not None and used + copied > PyBytes_GET_SIZE(chunk):
                self._write_part(chunk, used, begun)
                begun += used
                chunk = None
            if chunk is None:
                chunk = PyBytes_FromStringAndSize(NULL, min(left, <uint64_t>CHUNK_BYTES))
                used = 0
            self._join(<uint8_t*>PyBytes_AS_STRING(chunk) + used, <bytes>value, copied, at, version)
            used += copied
            at += VALUE_HEAD_BYTES + size
            left -= VALUE_HEAD_BYTES + size
            entries += 1
            if size > LARGEST_COPIED:
                self._write_part(chunk, used, begun)
                self._pwrite(<bytes>value, at - size)
                begun, chunk = at, None
        if chunk is not None:
            self._write_part(chunk, used, begun)
        self.end = at
        self.entries += entries
        return True

    cdef inline void _join(
        self, uint8_t* to, bytes value, Py_ssize_t copied, uint64_t offset, uint64_t version
    ) noexcept:
        """The first `copied` bytes, all or the head, of the entry that is to lie at `offset`."""
        cdef uint8_t seeded[SEEDED_BYTES]
        cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(value)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(value)
        cdef uint32_t crc
        store32(seeded, self.file_id)
        store32(seeded + 4, offset)
        store32(seeded + 8, size)
        store64(seeded + 12, version)
        crc = crc32c_extend(seeded, SEEDED_BYTES, 0)
        if copied > VALUE_HEAD_BYTES:
            crc = crc32c_extend_copied(to + VALUE_HEAD_BYTES, data, size, crc)
        else:
            crc = crc32c_extend(data, size, crc)
        store32(to, crc)
        store32(to + 4, size)
        store64(to + 8, version)

    cdef _write_part(self, bytes chunk, Py_ssize_t used, uint64_t offset):
        self._pwrite(chunk if used == PyBytes_GET_SIZE(chunk) else memoryview(chunk)[:used], offset)

    cdef bint write(self, bytes value, uint64_t version, uint8_t* pointer) except False:
        cdef Py_ssize_t size = PyBytes_GET_SIZE(value)
        cdef Py_ssize_t copied = VALUE_HEAD_BYTES + (size if size <= LARGEST_COPIED else 0)
        cdef bytes entry = PyBytes_FromStringAndSize(NULL, copied)
        self._join(<uint8_t*>PyBytes_AS_STRING(entry), value, copied, self.end, version)
        self._pwrite(entry, self.end)
        if size > LARGEST_COPIED:
            self._pwrite(value, self.end + VALUE_HEAD_BYTES)
        store32(pointer, self.file_id)
        store32(pointer + 4, self.end)
        store32(pointer + 8, size)
        self.end += VALUE_HEAD_BYTES + size
        self.entries += 1
        return True
