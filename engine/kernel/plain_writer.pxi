# The usual commit, whole: one plain entry, nothing to wait for.
#
# The Python twin is engine/writing/plain_writer.py. Whatever is not plain is declined, not done differently:
# the caller then takes the writer's long way.

cdef class Lock:
    """A lock as `threading.Lock` makes it, which compiled code can try without a Python call."""

    cdef PyThread_type_lock _lock
    cdef bint _held

    def __cinit__(self):
        self._lock = PyThread_allocate_lock()
        if self._lock == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self._lock != NULL:
            if self._held:
                PyThread_release_lock(self._lock)
            PyThread_free_lock(self._lock)

    cdef inline bint attempt(self) noexcept:
        if not PyThread_acquire_lock(self._lock, NOWAIT_LOCK):
            return False
        self._held = True
        return True

    cdef inline void give_up(self) noexcept:
        self._held = False
        PyThread_release_lock(self._lock)

    def acquire(self, bint blocking=True, double timeout=-1):
        """As `threading.Lock.acquire`: waits without the GIL, and signals are served meanwhile."""
        cdef PyLockStatus status
        cdef long long left = -1
        cdef double deadline = 0
        if timeout != -1:
            if not blocking:
                raise ValueError("can't specify a timeout for a non-blocking call")
            if not timeout >= 0:
                raise ValueError("timeout value must be a non-negative number")
            if timeout > _TIMEOUT_MAX:
                raise OverflowError("timeout value is too large")
        if self.attempt():
            return True
        if not blocking:
            return False
        if timeout >= 0:
            deadline = _monotonic() + timeout
        while True:
            if timeout >= 0:
                left = <long long>(max(0.0, deadline - <double>_monotonic()) * 1e6)
            with nogil:
                status = PyThread_acquire_lock_timed(self._lock, left, 1)
            if status == PY_LOCK_ACQUIRED:
                self._held = True
                return True
            if status == PY_LOCK_FAILURE:
                return False
            PyErr_CheckSignals()

    def release(self):
        if not self._held:
            raise RuntimeError("release unlocked lock")
        self.give_up()

    def locked(self):
        return self._held

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *_):
        self.release()


cdef class Published:
    """The timestamp up to which every commit can be read, and whether the database still answers."""

    cdef public uint64_t ts
    cdef public bint ended           # closing, or in a forked child

    def __cinit__(self, uint64_t ts):
        self.ts = ts


@cython.auto_pickle(False)
cdef class EntryBuffer:
    """Writes collected for a commit: values by key; `_special` has meta and expiry where not 0."""

    cdef public dict _writes
    cdef public dict _special
    cdef public Py_ssize_t _size          # as the transaction limit counts
    cdef public Py_ssize_t _size_limit
    cdef public Py_ssize_t _value_limit   # from this size on a value is counted by other rules
    cdef public Py_ssize_t _large_limit   # up to here as an address and a part of it, `_set` beyond
    cdef public int _large_shift          # which part: so many bits are shifted out
    cdef public Py_ssize_t _count_limit
    cdef public bint _collecting          # plain entries may come in
    cdef readonly Published _published

    def _collect(
        self, Published published not None, Py_ssize_t size_limit, Py_ssize_t value_limit,
        Py_ssize_t count_limit, bint collecting, Py_ssize_t large_limit=0, int large_shift=0,
    ):
        if not 0 <= large_shift < 63:
            raise ValueError("a size has 63 bits")
        self._published = published
        self._large_limit, self._large_shift = large_limit, large_shift
        self._size_limit, self._value_limit, self._count_limit = size_limit, value_limit, count_limit
        self._collecting = collecting
        self._clear()

    def _clear(self):
        self._writes = {}
        self._special = {}
        self._size = 0

    def set(self, key, value, *, ttl=None, meta=0, discard_earlier=False):
        """Set a key: `ttl` in seconds from now, `meta` a byte of yours; `discard_earlier` lets older
        versions go.

        `TypeError` for what is not bytes-like, `InvalidKeyError`, `BannedKeyError`,
        `TransactionTooBigError` (nothing is lost, it can be committed), `ValueError` for a ttl that
        is not above 0 or a meta that is no byte.
        """
        cdef Py_ssize_t key_size, value_size, counted
        if (
            self._collecting and self._published is not None and ttl is None and type(key) is bytes and type(value) is bytes
            and not self._published.ended and not discard_earlier and type(meta) is int and meta == 0
        ):
            key_size = PyBytes_GET_SIZE(key)
            counted = value_size = PyBytes_GET_SIZE(value)
            if value_size >= self._value_limit:
                counted = POINTER_BYTES + (value_size >> self._large_shift)
            counted += key_size + RECORD_BYTES
            if (
                0 < key_size <= MAX_KEY_BYTES
                and <uint8_t>PyBytes_AS_STRING(key)[0] != FIRST_RESERVED
                and (value_size < self._value_limit or value_size <= self._large_limit)
                and self._size + counted <= self._size_limit
                and len(self._writes) < self._count_limit
            ):
                self._writes[key] = value
                if self._special:
                    self._special.pop(key, None)
                self._size += counted
                return
        self._set(key, value, ttl, meta, discard_earlier)

    def __setitem__(self, key, value):
        self.set(key, value)


cdef class PlainWriter:
    """Commits one plain entry, or declines. What it may do is set by the writer, under `lock`."""

    cdef readonly Lock lock
    cdef readonly Published published
    cdef public LogIndex index       # of the active memtable
    cdef public bint open            # plain entries may pass
    cdef public bint dirty           # somebody already sees to it that the log is synced
    cdef public uint64_t rotate_at   # bytes of log at which the memtable is full
    cdef public Py_ssize_t value_limit   # from this size on a value goes to the value log
    cdef public Py_ssize_t entry_limit   # largest entry a transaction takes, key and value
    cdef public ValueAppender values # where large values go; None: the long way
    cdef public set vlog_ids         # value-log files the active memtable points into
    cdef public object on_error      # under the lock: what to raise for an `OSError`
    cdef public uint64_t entries     # committed since open
    cdef public uint64_t size        # bytes of their keys and values

    def __cinit__(self, Lock lock not None, Published published not None, LogIndex index not None):
        self.lock = lock
        self.published = published
        self.index = index

    def put(self, key, value):
        """Commit an entry that has neither expiry nor meta; its timestamp. 0: take the long way."""
        cdef const uint8_t* key_at
        cdef Py_ssize_t key_size, value_size
        cdef LogIndex index
        cdef uint64_t ts = 0
        if not self.open or not self.dirty or type(key) is not bytes or type(value) is not bytes:
            return 0
        key_at = <const uint8_t*>PyBytes_AS_STRING(key)
        key_size = PyBytes_GET_SIZE(key)
        value_size = PyBytes_GET_SIZE(value)
        if not 0 < key_size <= MAX_KEY_BYTES or key_at[0] == FIRST_RESERVED:
            return 0
        if value_size >= self.value_limit:
            return self._put_large(key_at, key_size, value, -1)
        if (
            key_size + value_size > self.entry_limit
            or not self.lock.attempt()
        ):
            return 0
        try:
            index = self.index
            if self._may_append(-1) and index.append(
                key_at, key_size, <const uint8_t*>PyBytes_AS_STRING(value), value_size,
                0, 0, 0, self.published.ts + 1,
            ):
                ts = self._publish(1, key_size + value_size)
        finally:
            self.lock.give_up()
        return handed_over(ts)

    cdef inline bint _may_append(self, int64_t snapshot) noexcept:
        """Asked under the lock: whether what was true before it still is."""
        return (
            self.open and self.index is not None and self.index.end < self.rotate_at
            and (snapshot < 0 or <uint64_t>snapshot == self.published.ts)
        )

    cdef uint64_t _put_large(
        self, const uint8_t* key_at, Py_ssize_t key_size, bytes value, int64_t snapshot
    ) except? 0:
        """As `put`, by way of the value log."""
        cdef uint8_t pointer[POINTER_BYTES]
        cdef uint64_t ts = 0
        if (
            self.values is None or key_size + POINTER_BYTES > self.entry_limit
            or not self.lock.attempt()
        ):
            return 0
        try:
            if (
                self._may_append(snapshot) and self.index.has_room(key_size + POINTER_BYTES)
                and self.values is not None and self.values.has_room(len(value))
            ):
                ts = self.published.ts + 1
                try:
                    self.values.write(value, ts, pointer)    # may give up the GIL, not the lock
                except OSError as error:
                    raise self.on_error(error) from error
                self.vlog_ids.add(self.values.file_id)
                if self.index.append(
                    key_at, key_size, pointer, POINTER_BYTES, META_POINTER, 0, 0, ts
                ):
                    self._publish(1, key_size + len(value))
                else:                                        # the value is garbage, that is all
                    ts = 0
        finally:
            self.lock.give_up()
        return handed_over(ts)

    cdef uint64_t _commit_large(self, dict values, int64_t snapshot) except? 0:
        """As `commit`, by way of the value log. `values` are nobody else's."""
        cdef uint64_t ts = 0, size = 0, kept = 0, moved = 0, begun
        cdef Py_ssize_t limit = self.value_limit, count = 0, place = 0, value_size
        cdef PyObject* key
        cdef PyObject* value
        while PyDict_Next(values, &place, &key, &value):
            if type(<object>key) is not bytes or type(<object>value) is not bytes:
                return 0
            value_size = PyBytes_GET_SIZE(<object>value)
            size += PyBytes_GET_SIZE(<object>key) + value_size
            kept += PyBytes_GET_SIZE(<object>key)
            if value_size < limit:
                kept += value_size
            else:
                kept += POINTER_BYTES
                moved += VALUE_HEAD_BYTES + value_size
                count += 1
        if self.values is None or not self.lock.attempt():
            return 0
        try:
            if (
                self._may_append(snapshot) and self.index.has_room_for(len(values), kept)
                and self.values is not None and self.values.has_room_for(count, moved)
            ):
                ts = self.published.ts + 1
                begun = self.values.end
                try:
                    self.values.write_large(values, limit, ts)   # may give up the GIL, not the lock
                except OSError as error:
                    raise self.on_error(error) from error
                self.vlog_ids.add(self.values.file_id)
                if self.index.put_dict(values, ts, limit, self.values.file_id, begun):
                    self._publish(len(values), size)
                else:                                        # the values are garbage, that is all
                    ts = 0
        finally:
            self.lock.give_up()
        return handed_over(ts)

    cdef inline uint64_t _publish(self, Py_ssize_t count, Py_ssize_t size) noexcept:
        cdef uint64_t ts = self.published.ts + 1
        self.index.last_ts = ts
        self.published.ts = ts
        self.entries += count
        self.size += size
        return ts

    def commit(self, EntryBuffer buffer not None, int64_t snapshot=-1):
        """Commit what was collected as one transaction; its timestamp. 0: take the long way.

        With a `snapshot`: only if nothing was committed since, so that no read can conflict.
        """
        return self.commit_all(buffer, snapshot)

    cdef uint64_t commit_all(self, EntryBuffer buffer, int64_t snapshot) except? 0:
        cdef PyObject* key
        cdef PyObject* value
        cdef Py_ssize_t place = 0, size = 0, value_size
        cdef dict values = buffer._writes
        cdef uint64_t ts = 0
        if not self.open or not self.dirty or buffer._special or not values:
            return 0
        while PyDict_Next(values, &place, &key, &value):
            if type(<object>key) is not bytes or type(<object>value) is not bytes:
                return 0
            value_size = PyBytes_GET_SIZE(<object>value)
            if value_size >= self.value_limit:
                if len(values) > 1:
                    return self._commit_large(values.copy(), snapshot)
                return self._put_large(
                    <const uint8_t*>PyBytes_AS_STRING(<object>key), PyBytes_GET_SIZE(<object>key),
                    <bytes>value, snapshot,
                )
            size += PyBytes_GET_SIZE(<object>key) + value_size
        if not self.lock.attempt():
            return 0
        try:
            if self._may_append(snapshot) and self.index.put_plain(values, self.published.ts + 1):
                ts = self._publish(len(values), size)
        finally:
            self.lock.give_up()
        return handed_over(ts)
