# Point lookups over a whole read view: memtables, L0, one table per level.
#
# The Python twin is read_view.py (`ReadView.find` and `value_of`). Made once per view, on its first
# lookup; tables are opened one by one, when a key first falls into their range.

cdef enum:
    MAX_LEVELS = 16              # engine.ids


cdef struct Place:
    PyObject* table              # borrowed: the view holds it
    PyObject* blocks             # owned TableBlocks, NULL until first used
    const uint8_t* low
    size_t low_size
    const uint8_t* high
    size_t high_size


cdef class Points:
    """Where to look for a key, newest source first."""

    cdef list _memtables         # of LogIndex
    cdef list _tables            # these hold what `_places` borrows
    cdef list _bounds
    cdef Place* _places          # L0 from new to old, then level by level
    cdef Py_ssize_t _count
    cdef Py_ssize_t _level_zero
    cdef Py_ssize_t* _level_ends # of each level in `_places`
    cdef KeyHeads* _heads        # of each level's last keys
    cdef Py_ssize_t _levels
    cdef ValueMap _values
    cdef object _now_ms

    def __cinit__(self, list memtables not None, level_zero, levels, values, now_ms):
        """`level_zero` and each of `levels` are tables: `meta.min_key`, `meta.max_key`, `blocks()`.

        `values` is a ValueMap, or reads a value by (pointer, version); `now_ms()` is asked for entries that expire.
        """
        cdef Py_ssize_t nth, first
        cdef list tables_of = [list(tables) for tables in levels]
        self._places = NULL
        self._level_ends = NULL
        self._heads = NULL
        self._memtables = memtables.copy()
        for index in self._memtables:
            if not isinstance(index, LogIndex):
                raise TypeError("memtables are given by their LogIndex")
        self._tables = [*level_zero]
        self._level_zero = len(self._tables)
        self._levels = len(tables_of)
        if self._levels > MAX_LEVELS:
            raise ValueError("more levels than there may be")
        self._level_ends = <Py_ssize_t*>calloc(self._levels + 1, sizeof(Py_ssize_t))
        if self._level_ends == NULL:
            raise MemoryError
        for nth, tables in enumerate(tables_of):
            self._tables.extend(tables)
            self._level_ends[nth] = len(self._tables)
        self._places = <Place*>calloc(len(self._tables) + 1, sizeof(Place))
        if self._places == NULL:
            raise MemoryError
        self._count = len(self._tables)
        self._bounds = []
        for nth in range(self._count):
            self._fill(nth, self._tables[nth])
        self._heads = <KeyHeads*>calloc(self._levels + 1, sizeof(KeyHeads))
        if self._heads == NULL:
            raise MemoryError
        first = self._level_zero
        for nth in range(self._levels):
            self._make_heads(self._heads + nth, first, self._level_ends[nth])
            first = self._level_ends[nth]
        self._values = value_map(values)
        self._now_ms = now_ms

    cdef _fill(self, Py_ssize_t nth, table):
        cdef bytes low = table.meta.min_key, high = table.meta.max_key
        if low is None or high is None:
            raise TypeError("tables have bounds")
        self._bounds += (low, high)
        self._places[nth].table = <PyObject*>table
        self._places[nth].low = <const uint8_t*>PyBytes_AS_STRING(low)
        self._places[nth].low_size = len(low)
        self._places[nth].high = <const uint8_t*>PyBytes_AS_STRING(high)
        self._places[nth].high_size = len(high)

    cdef _make_heads(self, KeyHeads* heads, Py_ssize_t first, Py_ssize_t end):
        cdef Place* tables = self._places + first
        cdef Py_ssize_t nth, last = end - first - 1
        if last < 0:
            return
        if not heads_begin(
            heads, last + 1, tables.high, tables.high_size, tables[last].high, tables[last].high_size
        ):
            raise MemoryError
        for nth in range(last + 1):
            heads_set(heads, nth, tables[nth].high, tables[nth].high_size, 0, 0)

    def __dealloc__(self):
        cdef Py_ssize_t nth
        if self._heads != NULL:
            for nth in range(self._levels):
                heads_free(self._heads + nth)
        if self._places != NULL:
            for nth in range(self._count):
                Py_XDECREF(self._places[nth].blocks)
        free(self._places)
        free(self._level_ends)
        free(self._heads)

    cdef TableBlocks _blocks(self, Place* place):
        cdef TableBlocks blocks
        if place.blocks == NULL:
            blocks = (<object>place.table).blocks()
            if blocks is None:
                raise TypeError("a table without blocks")
            if not blocks.lasting:               # the index cache decides how long it stays
                return blocks
            if place.blocks == NULL:             # another thread may have been first
                Py_INCREF(blocks)
                place.blocks = <PyObject*>blocks
        return <TableBlocks>place.blocks

    cdef Py_ssize_t _in_level(self, Py_ssize_t level, const uint8_t* key, size_t size) noexcept nogil:
        """The table of a level that may hold the key, -1 when none may."""
        cdef Py_ssize_t first = self._level_ends[level - 1] if level else self._level_zero
        cdef Place* tables = self._places + first
        cdef size_t low, high, middle, count = self._level_ends[level] - first
        if not count:
            return -1
        low = heads_find(self._heads + level, key, size, &high)
        while low < high:
            middle = (low + high) >> 1
            if key_compare(tables[middle].high, tables[middle].high_size, key, size) < 0:
                low = middle + 1
            else:
                high = middle
        if low == count or key_compare(tables[low].low, tables[low].low_size, key, size) > 0:
            return -1
        return first + <Py_ssize_t>low

    cdef bint _find(self, bytes key, uint64_t ts, Entry* out, list keep) except -1:
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(key)
        cdef size_t size = PyBytes_GET_SIZE(key)
        cdef Py_ssize_t nth, level, last = -1, block = -1
        cdef Py_ssize_t found[MAX_LEVELS]
        cdef LogIndex memtable
        cdef TableBlocks blocks
        cdef uint64_t digest
        cdef Place* place
        if self._tables is None or self._bounds is None or self._memtables is None:
            raise RuntimeError("taken apart by the collector")
        for nth in range(PyList_GET_SIZE(self._memtables)):
            memtable = <LogIndex>PyList_GET_ITEM(self._memtables, nth)
            if memtable.find(at, size, ts, out):
                return True
        digest = xxh64(at, size)
        for level in range(self._levels):        # what each of them waits for, all wait for together
            nth = found[level] = self._in_level(level, at, size)
            if nth >= 0 and self._places[nth].blocks != NULL:
                (<TableBlocks>self._places[nth].blocks).ask(digest)
                last = level
        if last >= 0:                            # where most keys are
            blocks = <TableBlocks>self._places[found[last]].blocks
            block = blocks.block_for(at, size)   # while the filter arrives
            if not blocks.may_hold(digest):
                found[last] = -1
            elif block < blocks.count and blocks._base != NULL and not blocks.sealed:
                blocks.ask_block(block)
        for nth in range(self._level_zero):
            place = self._places + nth
            if (
                key_compare(at, size, place.low, place.low_size) >= 0
                and key_compare(at, size, place.high, place.high_size) <= 0
            ):
                blocks = self._blocks(place)
                if blocks.may_hold(digest) and blocks.find(at, size, ts, out, keep):
                    return True
        for level in range(self._levels):
            if found[level] < 0:
                continue
            if level == last:
                blocks = <TableBlocks>self._places[found[level]].blocks
                if blocks.find_from(block, at, size, ts, out, keep, True):
                    return True
                continue
            blocks = self._blocks(self._places + found[level])
            if blocks.may_hold(digest) and blocks.find(at, size, ts, out, keep):
                return True
        return False

    def find(self, bytes key not None, uint64_t ts):
        """The newest version <= ts, whatever it is: (version, user << 8 | meta, expiry ms, value)."""
        cdef Entry entry
        cdef list keep = []
        if not self._find(key, ts, &entry, keep):
            return None
        return found_tuple(&entry)

    def value_of(self, bytes key not None, uint64_t ts):
        """The live value at `ts`, or None."""
        cdef Entry entry
        cdef list keep = []
        if not self._find(key, ts, &entry, keep) or entry.meta & META_DELETE:
            return None
        if not entry.expiry:
            if not entry.meta & META_POINTER:
                return value_bytes(&entry)
            return self._values.read(entry.value, entry.value_size, entry.version)
        found = found_tuple(&entry)              # what follows may give up the GIL
        if found[2] <= self._now_ms():
            return None
        return self._values(found[3], found[0]) if found[1] & META_POINTER else found[3]
