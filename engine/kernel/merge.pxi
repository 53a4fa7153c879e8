# The merge of a compaction, entry by entry (the Python twin is compaction/merge_columns.py).
#
# `step` runs without the GIL for about STEP_BYTES of input, then says what it needs of Python. It
# reads blocks in place, compares keys by their first eight bytes where those differ, and copies an
# entry once, into the block that `BlockMaker` has in hand.

cdef enum:
    STEP_BYTES = 1 << 20         # passed between two returns to Python: signs of life, writes

cdef enum:                       # what `step` returns; compaction/merge_native.py has the same names
    MERGE_DONE = 0
    MERGE_TABLE = 1              # source `source` has come to the end of its table
    MERGE_OUTPUT = 2             # the next entry begins a table
    MERGE_PAUSE = 3              # nothing: signs of life may be given, blocks written
    MERGE_READY = 4              # inside only, from here on
    MERGE_BLOCK = 5              # a block that needs Python: a codec or damage
    MERGE_DISORDER = 6           # offsets within a block
    MERGE_UNSORTED = 7           # keys of a source
    MERGE_REFUSED = 8            # by the maker
    MERGE_NO_MEMORY = 9

cdef struct Source:
    const uint8_t* base          # of the mapping; all below are the open table's
    const uint8_t* offsets
    const uint8_t* sizes
    uint32_t seed
    Py_ssize_t block
    Py_ssize_t blocks
    bint sealed                  # blocks go through Python
    bint opened                  # `payload` is that of `block`
    bint clip                    # the start of the range lies in this block
    Payload payload
    size_t nth
    uint64_t found               # entries given
    Entry entry                  # the next one
    uint64_t prefix              # the first bytes of its key, as a number that orders like it


cdef inline uint64_t key_prefix(const uint8_t* key, size_t size) noexcept nogil:
    """The first 8 bytes, big-endian, zeros behind a shorter key: equal ones decide nothing."""
    cdef uint64_t word = 0
    if size >= 8:
        word = load64(key)
    elif size:
        memcpy(&word, key, size)
    return swapped64(word)


cdef bint open_in_place(Source* s) noexcept nogil:
    """Check the block and find its columns; False when Python has to see to it."""
    cdef uint64_t offset = load64(s.offsets + 8 * s.block)
    cdef uint32_t size = load32(s.sizes + 4 * s.block) - BLOCK_HEAD_BYTES
    cdef const uint8_t* at = s.base + offset
    if at[12] or load32(at + 8) != size or load32(at) != size or s.sealed:
        return False
    if load32(at + 4) != crc32c_extend(
        at + 8, <size_t>size + 8, s.seed ^ <uint32_t>offset ^ size
    ):
        return False
    return open_payload(at + BLOCK_HEAD_BYTES, size, &s.payload)


cdef class Merger:
    """Merges sources, given newest first, keeps what is to stay and puts it to a BlockMaker."""

    cdef object _refuse
    cdef list _kept_alive
    cdef list _tables                   # TableBlocks of each source, None without
    cdef list _mappings                 # Mapped of each source's table
    cdef list _payloads                 # bytes of an unpacked block of each source, else None
    cdef BlockMaker _maker
    cdef bint _last                     # no further table can be opened
    cdef uint64_t _limit
    cdef Retention _retention
    cdef bint _has_start
    cdef bint _has_stop
    cdef Span _start
    cdef Span _stop
    cdef Buffer _splits                 # Span
    cdef size_t _next_split
    # sources
    cdef Source* _sources
    cdef Py_ssize_t _count
    cdef Py_ssize_t _started
    cdef Py_ssize_t* _heap              # sources by their next entry
    cdef Py_ssize_t _heap_size
    cdef Py_ssize_t _turn               # the source whose next entry is to be found, -1 = none
    cdef bint _on_top                   # it is the first of the heap
    cdef Entry _entry
    cdef bint _judged                   # `_entry` stays and is not written yet
    cdef uint64_t _written_key          # the number of the key written last
    cdef uint64_t _passed
    cdef readonly Py_ssize_t source     # which one MERGE_TABLE is about

    def __init__(
        self, Py_ssize_t count, start, stop, Retention retention not None, list splits not None,
        uint64_t limit, refuse,
    ):
        """Range, splits and limit as in CompactJob and Outputs; `refuse(what)` makes an error."""
        if self._sources != NULL:
            raise RuntimeError("a merger merges once")
        self._refuse = refuse
        self._retention = retention
        self._limit = limit
        self._kept_alive = [start, stop, splits]
        self._splits = spans_of(splits)
        self._has_start = start is not None
        if self._has_start:
            self._start = bytes_span(start)
        self._has_stop = stop is not None
        if self._has_stop:
            self._stop = bytes_span(stop)
        self._tables = [None] * count
        self._mappings = [None] * count
        self._payloads = [None] * count
        self._count = count
        self._turn = -1
        self._sources = <Source*>calloc(count + 1, sizeof(Source))
        self._heap = <Py_ssize_t*>calloc(count + 1, sizeof(Py_ssize_t))
        if self._sources == NULL or self._heap == NULL:
            raise MemoryError

    def __dealloc__(self):
        drop(&self._splits)
        free(self._sources)
        free(self._heap)

    # -- what Python gives -----------------------------------------------------------------------

    def feed(self, Py_ssize_t nth, TableBlocks table not None):
        """The next table of a source, which is kept until `let_go` or `end`."""
        cdef Source* s
        if not 0 <= nth < self._count or table._base == NULL:
            raise ValueError("no such source, or its table is closed")
        s = &self._sources[nth]
        self._tables[nth] = table
        self._mappings[nth] = table._mapping
        self._payloads[nth] = None
        s.base = table._base
        s.offsets = table._offsets
        s.sizes = table._sizes
        s.seed = table._seed
        s.blocks = table.count
        s.sealed = table.sealed
        s.block = table.block_for(self._start.at, self._start.size) if self._has_start else 0
        s.clip = self._has_start
        s.opened = False
        s.found = 0

    def end(self, Py_ssize_t nth):
        """The source that MERGE_TABLE was about has no further table."""
        if nth != self._turn:
            raise ValueError("this source is not asked for a table")
        self._forget(nth)
        if self._on_top:
            self._heap_size -= 1
            self._heap[0] = self._heap[self._heap_size]
            self._sift_down()
        self._turn = -1

    def let_go(self, Py_ssize_t nth):
        """The open table of a source is about to be closed."""
        if not 0 <= nth < self._count:
            raise IndexError(nth)
        self._forget(nth)

    cdef _forget(self, Py_ssize_t nth):
        self._tables[nth] = self._mappings[nth] = self._payloads[nth] = None
        self._sources[nth].blocks = 0
        self._sources[nth].opened = False

    def close(self):
        """Let go of every table."""
        cdef Py_ssize_t nth
        for nth in range(self._count):
            self._forget(nth)
        self._heap_size = 0
        self._started = self._count
        self._turn = -1
        self._judged = False

    def found(self, Py_ssize_t nth):
        """Entries that the open table of a source gave."""
        if not 0 <= nth < self._count:
            raise IndexError(nth)
        return self._sources[nth].found

    def passed(self, Py_ssize_t nth):
        """Where the block in hand begins in the open table of a source: nothing before it is read."""
        cdef const Source* s
        if not 0 <= nth < self._count:
            raise IndexError(nth)
        s = &self._sources[nth]
        return load64(s.offsets + 8 * s.block) if s.block < s.blocks else 0

    def write_to(self, BlockMaker maker not None, bint last):
        """Begin a table; `last`: there is no other after it."""
        cdef const Span* splits = <const Span*>self._splits.data
        self._maker = maker
        self._last = last
        while self._next_split < self._splits.size // sizeof(Span) and key_compare(
            splits[self._next_split].at, splits[self._next_split].size,
            self._entry.key, self._entry.key_size,
        ) <= 0:
            self._next_split += 1

    def step(self):
        """Go on until something is needed, see MERGE_*."""
        cdef int what
        while True:
            with nogil:
                what = self._run()
            if what == MERGE_BLOCK:
                self._load()
            elif what < MERGE_READY:
                return what
            elif what == MERGE_DISORDER:
                (<TableBlocks>self._tables[self._turn]).raise_disorder(
                    self._sources[self._turn].block
                )
            elif what == MERGE_UNSORTED:
                raise self._refuse("entries for a table are not in order")
            elif what == MERGE_REFUSED:
                self._maker.raise_refusal()
            else:
                raise MemoryError

    cdef _load(self):
        """Have Python unpack the block that is due, or say what is wrong with it."""
        cdef Source* s = &self._sources[self._turn]
        cdef TableBlocks table = self._tables[self._turn]
        cdef bytes raw = table._fetch(s.block, True)
        if not open_payload(<const uint8_t*>PyBytes_AS_STRING(raw), len(raw), &s.payload):
            raise table._damaged(
                "payload header does not fit the payload", load64(s.offsets + 8 * s.block)
            )
        self._payloads[self._turn] = raw
        s.opened = True
        s.nth = 0

    # -- sources, in the order of their next entries ---------------------------------------------

    cdef int _settle(self, Source* s) noexcept nogil:
        """Find the next entry of a source."""
        cdef Py_ssize_t low
        while True:
            if s.block >= s.blocks:
                return MERGE_TABLE
            if not s.opened:
                if not open_in_place(s):
                    return MERGE_BLOCK
                s.opened = True
                s.nth = 0
            if s.clip:
                low = lower_bound(&s.payload, self._start.at, self._start.size)
                if low < 0:
                    return MERGE_DISORDER
                s.nth = low
                s.clip = False
            if s.nth < s.payload.count:
                break
            s.opened = False
            s.block += 1
        if not entry_of(&s.payload, s.nth, &s.entry):
            return MERGE_DISORDER
        if self._has_stop and key_compare(
            s.entry.key, s.entry.key_size, self._stop.at, self._stop.size
        ) >= 0:
            s.block = s.blocks
            return MERGE_TABLE
        s.prefix = key_prefix(s.entry.key, s.entry.key_size)
        s.nth += 1
        s.found += 1
        return MERGE_READY

    cdef inline bint _before(self, Py_ssize_t a, Py_ssize_t b) noexcept nogil:
        """Whether source a's next entry comes first: by key, newest version, newest source."""
        cdef const Source* left = &self._sources[a]
        cdef const Source* right = &self._sources[b]
        cdef int order
        if left.prefix != right.prefix:
            return left.prefix < right.prefix
        order = key_compare(
            left.entry.key, left.entry.key_size, right.entry.key, right.entry.key_size
        )
        if order:
            return order < 0
        if left.entry.version != right.entry.version:
            return left.entry.version > right.entry.version
        return a < b

    cdef void _push(self, Py_ssize_t source) noexcept nogil:
        cdef Py_ssize_t at = self._heap_size, parent
        self._heap_size += 1
        while at:
            parent = (at - 1) >> 1
            if not self._before(source, self._heap[parent]):
                break
            self._heap[at] = self._heap[parent]
            at = parent
        self._heap[at] = source

    cdef void _sift_down(self) noexcept nogil:
        """Put the first of the heap, whose entry is another now, where it belongs."""
        cdef Py_ssize_t at = 0, child, source
        if self._heap_size < 2:
            return
        source = self._heap[0]
        while True:
            child = 2 * at + 1
            if child >= self._heap_size:
                break
            if child + 1 < self._heap_size and self._before(
                self._heap[child + 1], self._heap[child]
            ):
                child += 1
            if not self._before(self._heap[child], source):
                break
            self._heap[at] = self._heap[child]
            at = child
        self._heap[at] = source

    # -- the merge -------------------------------------------------------------------------------

    cdef int _run(self) noexcept nogil:
        cdef int what
        while True:
            if self._turn >= 0:
                what = self._settle(&self._sources[self._turn])
                if what != MERGE_READY:
                    self.source = self._turn
                    return what
                if self._on_top:
                    self._sift_down()
                else:
                    self._push(self._turn)
                self._turn = -1
            if self._started < self._count:
                self._turn = self._started
                self._started += 1
                self._on_top = False
                continue
            if not self._heap_size:
                return MERGE_DONE
            if not self._judged:
                self._entry = self._sources[self._heap[0]].entry
                what = self._retention.judge(&self._entry)
                if what == ENTRY_UNSORTED:
                    return MERGE_UNSORTED
                if what == ENTRY_NO_MEMORY:
                    return MERGE_NO_MEMORY
                self._judged = what == ENTRY_STAYS
            if self._judged:
                what = self._write()
                if what != MERGE_READY:
                    return what
            self._turn = self._heap[0]
            self._on_top = True
            self._passed += self._entry.key_size + self._entry.value_size + ENTRY_BYTES
            if self._passed >= STEP_BYTES:
                self._passed = 0
                return MERGE_PAUSE

    cdef int _write(self) noexcept nogil:
        """Put the entry in hand to the maker, unless a table must be begun first."""
        cdef bint fresh = self._written_key != self._retention.keys
        if fresh and (self._maker is None or self._is_full()):
            return MERGE_OUTPUT
        if self._maker.put(&self._entry) != PUT_DONE:
            return MERGE_REFUSED
        self._judged = False
        self._written_key = self._retention.keys
        return MERGE_READY

    cdef bint _is_full(self) noexcept nogil:
        """Whether the table in hand ends before a key that is new."""
        cdef const Span* split
        if self._last or self._maker.count == 0:
            return False
        if self._maker.measured() >= self._limit:
            return True
        if self._next_split >= self._splits.size // sizeof(Span):
            return False
        split = <const Span*>self._splits.data + self._next_split
        return key_compare(split.at, split.size, self._entry.key, self._entry.key_size) <= 0
