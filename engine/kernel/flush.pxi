# A sealed log's records, sorted into table order (the Python twin is memtable/flush.py, the walk over
# frames log/reader.py).
#
# Records stay where they are in the mapping; what is sorted are their places, with eight bytes of key
# behind what all keys begin with. Anything irregular ends the walk: the Python twin then reads the
# log again and says what is wrong, so there is one place that does.

cdef enum:
    KIND_END = 2
    FEW = 12                     # so many are sorted by insertion
    AHEAD = 8                    # records whose bytes are asked for before their turn

cdef enum:                       # what a walk or `step` returns; memtable/flush.py has the same names
    FLUSH_DONE = 0
    FLUSH_MORE = 1
    FLUSH_IRREGULAR = 2
    FLUSH_REFUSED = 3
    FLUSH_NO_MEMORY = 4
    FLUSH_UNSORTED = 5

cdef struct RecordPlace:
    uint64_t word                # 8 bytes of the key, in an order of numbers
    uint64_t offset              # of the record


@cython.no_gc
cdef class LogSorter:
    """Reads a log's records, then puts them to a BlockMaker in table order."""

    cdef Py_buffer _view
    cdef bint _held
    cdef const uint8_t* _base
    cdef uint64_t _size
    cdef uint32_t _seed
    cdef uint64_t _gap                  # bytes kept free behind every frame
    cdef object _refuse
    cdef uint64_t _at                   # of the next frame
    cdef uint64_t _newest
    cdef uint64_t _records
    cdef readonly bint ordered          # commit order is version order so far
    cdef size_t _common                 # bytes that all keys begin with
    cdef Buffer _places                 # RecordPlace
    cdef Buffer _spare
    cdef size_t _next
    cdef readonly uint64_t read         # entries put so far, copies of one version once

    def __init__(
        self, mapping, uint32_t seed, uint64_t start, uint64_t end, refuse, uint64_t gap=0
    ):
        """Frames of `mapping` from `start` up to `end`; `refuse(what)` makes an error."""
        if self._held:
            raise RuntimeError("a log is read once")
        self._seed = seed
        self._at = start
        if gap > 64:
            raise ValueError("a gap holds a tag")
        self._gap = gap
        self._refuse = refuse
        self.ordered = True
        PyObject_GetBuffer(mapping, &self._view, PyBUF_SIMPLE)
        self._held = True
        self._base = <const uint8_t*>self._view.buf
        self._size = min(<uint64_t>self._view.len, end)

    def __dealloc__(self):
        if self._held:
            PyBuffer_Release(&self._view)
        drop(&self._places)
        drop(&self._spare)

    def release(self):
        """Let go of the mapping; nothing can be read after it."""
        self._size = 0
        self._places.size = self._next = 0
        if self._held:
            self._held = False
            PyBuffer_Release(&self._view)

    @property
    def at(self):
        """How far the walk is."""
        return self._at

    @property
    def count(self):
        return self._places.size // sizeof(RecordPlace)

    # -- the walk --------------------------------------------------------------------------------

    def walk(self):
        """Read about STEP_BYTES of frames: True when there are more, None when it cannot go on."""
        cdef int what
        with nogil:
            what = self._walk()
        if what == FLUSH_NO_MEMORY:
            raise MemoryError
        return None if what == FLUSH_IRREGULAR else what == FLUSH_MORE

    cdef int _walk(self) noexcept nogil:
        cdef uint64_t pause = self._at + STEP_BYTES
        cdef int what = FLUSH_MORE
        while what == FLUSH_MORE and self._at < pause:
            what = self._frame()
        return what

    cdef int _frame(self) noexcept nogil:
        cdef const uint8_t* at
        cdef uint64_t body = self._at + PREFIX_BYTES
        cdef uint64_t ts
        cdef uint32_t length, records, kind
        if body + BODY_BYTES > self._size:
            return FLUSH_IRREGULAR if self._at < self._size else FLUSH_DONE
        at = self._base + self._at
        length = load32(at)
        if length < BODY_BYTES or body + length > self._size:
            return FLUSH_IRREGULAR
        if crc32c_extend(at + PREFIX_BYTES, length, self._seed ^ length) != load32(at + 4):
            return FLUSH_IRREGULAR
        at = self._base + body
        ts = load64(at)
        records = load32(at + 8)
        kind = load16(at + 12)
        if load16(at + 14) or (kind != KIND_TXN and kind != KIND_END):
            return FLUSH_IRREGULAR
        self._at = (body + length + self._gap + 7) & ~<uint64_t>7
        if kind == KIND_END:
            return FLUSH_DONE if records == self._records else FLUSH_IRREGULAR
        self._records += records
        if ts <= self._newest:
            self.ordered = False
        self._newest = ts
        return self._frame_records(body + BODY_BYTES, body + length, records)

    cdef int _frame_records(self, uint64_t at, uint64_t stop, uint32_t records) noexcept nogil:
        cdef RecordPlace place
        cdef const uint8_t* record
        cdef uint64_t key_size, end
        place.word = 0
        while records:
            if at + RECORD_BYTES > stop:
                return FLUSH_IRREGULAR
            record = self._base + at
            key_size = load16(record + 24)
            end = at + RECORD_BYTES + key_size + load32(record + 16)
            if end > stop or not 0 < key_size <= MAX_KEY_BYTES or load32(record + 20) >= at:
                return FLUSH_IRREGULAR
            if load64(record) != self._newest:
                self.ordered = False
            place.offset = at
            if not append(&self._places, &place, sizeof(RecordPlace)):
                return FLUSH_NO_MEMORY
            self._narrow(record + RECORD_BYTES, key_size)
            at = end
            records -= 1
        return FLUSH_MORE if at == stop else FLUSH_IRREGULAR

    cdef inline void _narrow(self, const uint8_t* key, size_t size) noexcept nogil:
        """Shorten what all keys begin with to what this one does, too."""
        cdef const RecordPlace* first = <const RecordPlace*>self._places.data
        cdef const uint8_t* other = self._base + first.offset + RECORD_BYTES
        cdef size_t common = 0
        if self._places.size == sizeof(RecordPlace):
            self._common = size
            return
        if size < self._common:
            self._common = size
        while common < self._common and key[common] == other[common]:
            common += 1
        self._common = common

    # -- the order -------------------------------------------------------------------------------

    def sort(self):
        """Keys ascending, versions descending, the record written last first."""
        cdef bint done
        with nogil:
            done = self._sort()
        if not done:
            raise MemoryError

    cdef bint _sort(self) noexcept nogil:
        cdef RecordPlace* places = <RecordPlace*>self._places.data
        cdef size_t count = self._places.size // sizeof(RecordPlace)
        cdef size_t nth, start
        cdef const uint8_t* record
        if not count:
            return True
        if not grow(&self._spare, self._places.size):
            return False
        for nth in range(count):
            record = self._base + places[nth].offset
            if nth + AHEAD < count:
                prefetch(self._base + places[nth + AHEAD].offset + RECORD_BYTES)
            places[nth].word = key_prefix(
                record + RECORD_BYTES + self._common, load16(record + 24) - self._common
            )
        self._sort_words(count)
        places = <RecordPlace*>self._places.data
        start = 0
        for nth in range(1, count + 1):
            if nth == count or places[nth].word != places[start].word:
                if nth - start > 1:
                    self._sort_keys(places + start, <RecordPlace*>self._spare.data, nth - start)
                start = nth
        return True

    cdef void _sort_words(self, size_t count) noexcept nogil:
        """By `word`, byte for byte from the last on; bytes that all have alike are left out."""
        cdef size_t[256] ends
        cdef RecordPlace* places
        cdef RecordPlace* sorted_places
        cdef Buffer swap
        cdef size_t nth, sum, number
        cdef int shift, byte
        for shift in range(0, 64, 8):
            places = <RecordPlace*>self._places.data
            sorted_places = <RecordPlace*>self._spare.data
            memset(ends, 0, sizeof(ends))
            for nth in range(count):
                ends[places[nth].word >> shift & 255] += 1
            if ends[places[0].word >> shift & 255] == count:
                continue
            sum = 0
            for byte in range(256):
                number = ends[byte]
                ends[byte] = sum
                sum += number
            for nth in range(count):
                byte = places[nth].word >> shift & 255
                sorted_places[ends[byte]] = places[nth]
                ends[byte] += 1
            self._spare.size = self._places.size
            swap = self._places
            self._places = self._spare
            self._spare = swap

    cdef bint _before(self, const RecordPlace* a, const RecordPlace* b) noexcept nogil:
        cdef const uint8_t* left = self._base + a.offset
        cdef const uint8_t* right = self._base + b.offset
        cdef int order = key_compare(
            left + RECORD_BYTES, load16(left + 24), right + RECORD_BYTES, load16(right + 24)
        )
        if order:
            return order < 0
        if load64(left) != load64(right):
            return load64(left) > load64(right)
        return a.offset > b.offset

    cdef void _sort_keys(self, RecordPlace* places, RecordPlace* spare, size_t count) noexcept nogil:
        """Merge sort of places whose words are equal."""
        cdef size_t middle = count >> 1, left = 0, right = middle, nth, at
        cdef RecordPlace moved
        if count <= FEW:
            for nth in range(1, count):
                moved = places[nth]
                at = nth
                while at and self._before(&moved, &places[at - 1]):
                    places[at] = places[at - 1]
                    at -= 1
                places[at] = moved
            return
        self._sort_keys(places, spare, middle)
        self._sort_keys(places + middle, spare, count - middle)
        memcpy(spare, places, middle * sizeof(RecordPlace))
        nth = 0
        while left < middle:
            if right < count and self._before(&places[right], &spare[left]):
                places[nth] = places[right]
                right += 1
            else:
                places[nth] = spare[left]
                left += 1
            nth += 1

    # -- what goes on ----------------------------------------------------------------------------

    def step(self, BlockMaker maker not None, Retention retention):
        """Put about STEP_BYTES of entries to `maker`; False when there are no more.

        Without `retention` every version stays, the copy of each that was written last.
        """
        cdef int what
        with nogil:
            what = self._step(maker, retention)
        if what == FLUSH_REFUSED:
            maker.raise_refusal()
        if what == FLUSH_UNSORTED:
            raise self._refuse("entries for a table are not in order")
        if what == FLUSH_NO_MEMORY:
            raise MemoryError
        return what == FLUSH_MORE

    cdef int _step(self, BlockMaker maker, Retention retention) noexcept nogil:
        cdef const RecordPlace* places = <const RecordPlace*>self._places.data
        cdef size_t count = self._places.size // sizeof(RecordPlace)
        cdef uint64_t passed = 0
        cdef const uint8_t* record
        cdef Entry entry
        cdef int what
        while self._next < count:
            if passed >= STEP_BYTES:
                return FLUSH_MORE
            record = self._base + places[self._next].offset
            if self._next + AHEAD < count:           # records lie anywhere: none is in the cache
                prefetch(self._base + places[self._next + AHEAD].offset)
                prefetch(self._base + places[self._next + AHEAD].offset + 64)
                prefetch(self._base + places[self._next + AHEAD].offset + 128)
            self._next += 1
            entry.version = load64(record)
            entry.expiry = load64(record + 8)
            entry.value_size = load32(record + 16)
            entry.key_size = load16(record + 24)
            entry.meta = record[26] | <uint32_t>record[27] << 8
            entry.key = record + RECORD_BYTES
            entry.value = entry.key + entry.key_size
            passed += entry.key_size + entry.value_size + ENTRY_BYTES
            if retention is not None:
                what = retention.judge(&entry)
                if what == ENTRY_NO_MEMORY:
                    return FLUSH_NO_MEMORY
                if what == ENTRY_UNSORTED or what == ENTRY_COPY:
                    return FLUSH_UNSORTED
                self.read += 1
                if what == ENTRY_GOES:
                    continue
            elif maker.holds(&entry):
                continue
            else:
                self.read += 1
            if maker.put(&entry) != PUT_DONE:
                return FLUSH_REFUSED
        return FLUSH_DONE
