# Scans forward over a read view: sources merged, versions judged, keys and values handed out in lists.
#
# The Python twin is iterators/merge.py with iterators/visible.py. Only for the usual question: keys in
# ascending order, the newest visible version of each, no drops or bans in force.

cdef enum:
    FIRST_BATCH = 32             # entries; who wants little waits for little
    LARGEST_BATCH = 1024
    LARGEST_BATCH_BYTES = 256 << 10
    # Of the value log. A page that is not in the TLB holds up all that is behind it, unless more of
    # them are looked up side by side; and only so many lines can be on their way.
    VALUES_AHEAD = 8             # its lines are asked for in parts while a value is made
    PAGES_AHEAD = 16             # at least, looked up
    PAGES_AT_ONCE = 32

cdef uint64_t OWN_VERSION = (<uint64_t>1 << 63) - 1    # iterators.visible: a transaction's own write


cdef class _Source:
    """Entries of one source in order: the tables of a run, or batches of columns from Python."""

    cdef Entry entry
    # tables
    cdef list _tables
    cdef Py_ssize_t _table
    cdef bytes _low, _high
    cdef TableBlocks _blocks
    cdef Mapped _hold            # what `_payload` lies in
    cdef Py_ssize_t _block
    cdef object _owner
    cdef Payload _payload
    cdef size_t _nth, _stop
    cdef bint _last_block
    # batches
    cdef object _batches
    cdef list _keys, _versions, _metas, _expiries, _values

    cdef bint begin(self) except -1:
        """Go to the first entry; False when there is none."""
        self._table = -1
        self._nth = self._stop = 0
        self._last_block = True
        return self.advance()

    cdef inline bint advance(self) except -1:
        """Go to the next entry; False when there is none."""
        self._nth += 1
        while self._nth >= self._stop:
            if not (self._next_block() if self._batches is None else self._next_batch()):
                return False
        if self._batches is not None:
            return self._from_batch()
        if not entry_of(&self._payload, self._nth, &self.entry):
            self._blocks.raise_disorder(self._block)
        return True

    cdef bint _next_block(self) except -1:
        cdef Py_ssize_t at
        while self._last_block:
            self._table += 1
            if self._table >= len(self._tables):
                return False
            self._blocks = self._tables[self._table].blocks()
            if self._blocks is None:
                raise TypeError("a table without blocks")
            self._hold = self._blocks._mapping
            self._block = -1
            if self._low is not None:
                self._block += self._blocks.block_for(
                    <const uint8_t*>PyBytes_AS_STRING(self._low), len(self._low)
                )
            self._last_block = self._block + 1 >= self._blocks.count
        self._block += 1
        self._owner = self._blocks.payload(self._block, &self._payload, True)
        self._nth, self._stop = 0, self._payload.count
        self._last_block = self._block + 1 >= self._blocks.count
        if self._low is not None:
            at = lower_bound(
                &self._payload, <const uint8_t*>PyBytes_AS_STRING(self._low), len(self._low)
            )
            if at < 0:
                self._blocks.raise_disorder(self._block)
            self._nth = at
        if self._high is not None:
            at = lower_bound(
                &self._payload, <const uint8_t*>PyBytes_AS_STRING(self._high), len(self._high)
            )
            if at < 0:
                self._blocks.raise_disorder(self._block)
            if <size_t>at < self._stop:
                self._stop = at
                self._last_block = True
                self._table = len(self._tables)
        return True

    cdef bint _next_batch(self) except -1:
        batch = next(self._batches, None)
        if batch is None:
            return False
        self._keys, self._versions, self._metas = batch.keys, batch.versions, batch.metas
        self._expiries, self._values = batch.expiries, batch.values
        self._nth = self._stop = 0
        if not (
            len(self._keys) == len(self._versions) == len(self._metas) == len(self._expiries)
            == len(self._values)
        ):
            raise ValueError("columns differ in length")
        self._stop = len(self._keys)
        return True

    cdef bint _from_batch(self) except -1:
        cdef bytes key = self._keys[self._nth], value = self._values[self._nth]
        if key is None or value is None:
            raise TypeError("keys and values are bytes")
        self.entry.key = <const uint8_t*>PyBytes_AS_STRING(key)
        self.entry.key_size = PyBytes_GET_SIZE(key)
        self.entry.value = <const uint8_t*>PyBytes_AS_STRING(value)
        self.entry.value_size = PyBytes_GET_SIZE(value)
        self.entry.version = self._versions[self._nth]
        self.entry.meta = self._metas[self._nth]
        self.entry.expiry = self._expiries[self._nth]
        return True


cdef struct Wanted:              # a value of the value log
    PyObject* file               # ValueFile, borrowed from the map; NULL: it knows where
    int64_t place
    uint64_t version
    bint logged                  # or it is at hand
    uint8_t pointer[POINTER_BYTES]


cdef class LazyValues:
    """A batch's values. Those of the value log are read when they are asked for, in order: so each
    is made where an earlier one was, in memory that is near.

    The Python twin is `LazyValuesPy` in txn/batches.py.
    """

    cdef list _at_hand           # the values, or the address of one that no file of the map has
    cdef Wanted* _wanted
    cdef ValueMap _map
    cdef Recycler _spare
    cdef PyObject* _file         # what the map has as `_logical`, the file of the entry before
    cdef uint32_t _logical
    cdef Py_ssize_t _room
    cdef Py_ssize_t _looked_up   # the pages of so many

    def __cinit__(self, list at_hand not None, Py_ssize_t room, ValueMap map not None):
        """Begins with what is `at_hand`, which grows to at most `room` values."""
        if len(at_hand) > room:
            raise IndexError("more values than a batch has")
        self._at_hand, self._map, self._room = at_hand, map, room
        self._spare = Recycler()
        self._wanted = <Wanted*>calloc(room, sizeof(Wanted))
        if self._wanted == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self._wanted)

    def __len__(self):
        return len(self._at_hand)

    def __getitem__(self, Py_ssize_t at):
        return self.take(at)

    cdef bint add(self, const Entry* entry) except False:
        """Behind the others comes what `entry` points to."""
        cdef Wanted* wanted
        if len(self._at_hand) >= self._room:
            raise IndexError("more values than a batch has")
        wanted = self._wanted + len(self._at_hand)
        wanted.logged, wanted.version, wanted.file = True, entry.version, NULL
        if entry.value_size == POINTER_BYTES:
            if self._file == NULL or self._logical != load32(entry.value):
                self._file, self._logical = self._map.file_of(entry.value), load32(entry.value)
            wanted.file = self._file
        if wanted.file == NULL:
            self._at_hand.append(value_bytes(entry))
            return True
        memcpy(wanted.pointer, entry.value, POINTER_BYTES)
        wanted.place = (<ValueFile>wanted.file)._place(load32(entry.value + 4))
        self._at_hand.append(None)
        return True

    cdef object take(self, Py_ssize_t at):
        cdef Wanted* wanted
        cdef Lines later
        cdef object value
        cdef Py_ssize_t count = min(len(self._at_hand), self._room)
        if not 0 <= at < count:
            raise IndexError("a batch has no such value")
        wanted = self._wanted + at
        if self._looked_up < count and self._looked_up <= at + PAGES_AHEAD:
            self._look_up(min(count, self._looked_up + PAGES_AT_ONCE))
        later.at = NULL
        if at + VALUES_AHEAD < count and wanted[VALUES_AHEAD].file != NULL:
            later = (<ValueFile>wanted[VALUES_AHEAD].file).lines(
                wanted[VALUES_AHEAD].place, wanted[VALUES_AHEAD].pointer
            )
            ask_part(&later)
        if not wanted.logged:
            value = self._at_hand[at]
        elif wanted.file != NULL:
            value = (<ValueFile>wanted.file).fetch_at(
                wanted.place, wanted.pointer, wanted.version, &later, self._spare
            )
        else:
            value = self._map._elsewhere(self._at_hand[at], wanted.version)
        ask_part(&later)
        if type(value) is not bytes:
            raise TypeError("a value is bytes")
        return value

    cdef void _look_up(self, Py_ssize_t stop) noexcept:
        """The pages up to `stop`, and the lines of the first values, which nobody asked for."""
        cdef Wanted* wanted
        cdef Lines lines
        cdef Py_ssize_t at
        for at in range(self._looked_up, stop):
            wanted = self._wanted + at
            if wanted.file != NULL:
                (<ValueFile>wanted.file).look_up(wanted.place, wanted.pointer)
        for at in range(self._looked_up, min(stop, VALUES_AHEAD)):
            wanted = self._wanted + at
            if wanted.file != NULL:
                lines = (<ValueFile>wanted.file).lines(wanted.place, wanted.pointer)
                prefetch_soon(lines.at, LINES_PARTS * lines.part)
        self._looked_up = stop


cdef class Scan:
    """What a reader at `ts` sees of the keys in [low, high), in batches."""

    cdef list _open              # sources that are not at their end, newest first
    cdef bint _begun
    cdef uint64_t _ts, _since, _now_ms
    cdef bint _keys_wanted, _values_wanted, _details
    cdef ValueMap _read_value
    cdef Py_ssize_t _size        # entries of the next batch
    cdef _Source _lead           # whose entry is next
    cdef _Source _rival          # whose entry would be, without it
    cdef bint _busy
    cdef bytes _last             # the key that was judged last
    cdef object _failure         # met in the middle of a batch, to be raised at the next

    def __cinit__(
        self, sources, bytes low, bytes high, uint64_t ts, uint64_t since, uint64_t now_ms, values_at,
        *, bint keys=True, bint values=True, bint details=False,
    ):
        """`sources`, newest first: lists of tables in key order, or iterators of `Columns`.

        `values_at` is a ValueMap, or reads a value by (pointer, version). Asked for `details`,
        values come as they are stored, with versions, metas and expiries.
        """
        cdef _Source source
        self._open = []
        for given in sources:
            source = _Source.__new__(_Source)
            source._low, source._high = low, high
            if isinstance(given, list):
                source._tables = given
            else:
                source._batches = given
            self._open.append(source)
        self._ts, self._since, self._now_ms = ts, since, now_ms
        self._read_value = value_map(values_at)
        self._keys_wanted, self._values_wanted, self._details = keys, values, details
        self._size = FIRST_BATCH

    cdef _begin(self):
        self._begun = True
        self._open = [source for source in self._open if (<_Source>source).begin()]
        self._choose()

    cdef _choose(self):
        """The source with the smallest key, the newest of equals, and the one that comes next."""
        cdef _Source lead = None, source, second = None
        for source in self._open:
            if lead is None:
                lead = source
            elif key_compare(
                source.entry.key, source.entry.key_size, lead.entry.key, lead.entry.key_size
            ) < 0:
                second, lead = lead, source
            elif second is None or key_compare(
                source.entry.key, source.entry.key_size, second.entry.key, second.entry.key_size
            ) < 0:
                second = source
        self._lead, self._rival = lead, second

    cdef inline bint _is_last(self, const Entry* entry) noexcept:
        return (
            self._last is not None and PyBytes_GET_SIZE(self._last) == <Py_ssize_t>entry.key_size
            and memcmp(PyBytes_AS_STRING(self._last), entry.key, entry.key_size) == 0
        )

    def next_batch(self):
        """(keys, values) or, with details, (keys, versions, metas, expiries, values); None at the
        end. What was not asked for is None. Values are a list, or `LazyValues` of it.

        Damage is raised behind the entries before it. A scan that failed or was interrupted fails
        again: it never goes on behind what it did not give.
        """
        cdef list keys = [], values = [], versions = [], metas = [], expiries = []
        cdef LazyValues lazy = None
        cdef Py_ssize_t found = 0, size = 0
        cdef _Source lead
        cdef Entry* entry
        cdef bytes key, value
        if self._failure is not None:
            raise self._failure
        if self._busy:
            raise ValueError("iterator already executing")
        self._busy = True
        try:
            if not self._begun:
                self._begin()
            lead = self._lead
            while lead is not None and found < self._size and size < LARGEST_BATCH_BYTES:
                entry = &lead.entry
                if not self._is_last(entry) and (
                    entry.version <= self._ts or entry.version == OWN_VERSION
                ):
                    key = PyBytes_FromStringAndSize(<const char*>entry.key, entry.key_size)
                    self._last = key
                    if not (
                        entry.meta & META_DELETE or 0 < entry.expiry <= self._now_ms
                        or entry.version <= self._since
                    ):
                        if self._values_wanted:
                            if entry.meta & META_POINTER and not self._details:
                                if lazy is None:
                                    lazy = LazyValues(values, self._size, self._read_value)
                                lazy.add(entry)
                            else:
                                value = value_bytes(entry)
                                values.append(value)
                                size += PyBytes_GET_SIZE(value)
                        if self._details:
                            versions.append(entry.version)
                            metas.append(entry.meta)
                            expiries.append(entry.expiry)
                        if self._keys_wanted:
                            keys.append(key)
                        found += 1
                if not lead.advance():
                    self._open.remove(lead)
                    self._choose()
                    lead = self._lead
                elif self._rival is not None and key_compare(
                    entry.key, entry.key_size, self._rival.entry.key, self._rival.entry.key_size
                ) >= 0:
                    self._choose()
                    lead = self._lead
        except BaseException as error:
            self._failure = error
            if not found or not isinstance(error, Exception):
                raise
        finally:
            self._busy = False
        self._size = min(2 * self._size, LARGEST_BATCH)
        if not found:
            return None
        if self._details:
            return keys, versions, metas, expiries, values
        return (
            keys if self._keys_wanted else None,
            None if not self._values_wanted else values if lazy is None else lazy,
        )


cdef class BatchIterator:
    """An iterator over what comes batch by batch. The Python twin is txn/batches.py."""

    cdef public list _keys
    cdef public object _values
    cdef public Py_ssize_t _at
    cdef public Py_ssize_t _count
    cdef public int _shape       # 0 pairs, 1 keys, 2 values
    cdef bint _reading           # a value is being read, which may let other threads in

    def __iter__(self):
        return self

    def __next__(self):
        cdef Py_ssize_t at
        cdef list keys
        cdef object values, value
        if self._reading:
            raise self._in_use()
        while True:
            at = self._at
            if at < self._count:
                keys, values = self._keys, self._values
                if (self._shape == 2 or keys is not None) and (
                    self._shape == 1 or values is not None
                ):
                    self._at = at + 1
                    with boundscheck(True):      # subclasses set the lists and the numbers
                        if self._shape == 1:
                            return keys[at]
                        if type(values) is list:
                            value = (<list>values)[at]
                        else:
                            value = self._lazy(values, at)
                        return value if self._shape == 2 else (keys[at], value)
                self._count = 0                  # another thread ended it meanwhile
            if not self._refill():
                raise StopIteration

    cdef object _lazy(self, values, Py_ssize_t at):
        self._reading = True
        try:
            if type(values) is LazyValues:
                return (<LazyValues>values).take(at)
            return values[at]
        except Exception as error:
            self._untaken(values, at)
            self._met(error)
            raise
        except BaseException:
            self._untaken(values, at)
            raise
        finally:
            self._reading = False

    cdef _untaken(self, values, Py_ssize_t at):
        if self._values is values:               # another thread may have ended it meanwhile
            self._at = at


def step_directly(type cls not None):
    """Have instances of a subclass of `BatchIterator` step without looking `__next__` up by name,
    which Python does once an item because Cython lists it as a method as well.
    """
    if not issubclass(cls, BatchIterator) or cls.__next__ is not BatchIterator.__next__:
        raise TypeError("it does not step as a BatchIterator")
    (<PyTypeObject*>cls).tp_iternext = (<PyTypeObject*>BatchIterator).tp_iternext
    return cls
