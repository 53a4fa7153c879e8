# Read marks, and a transaction from its mark to its end.
#
# The Python twins are `ReadersPy` and `MarkPy` in engine/txn/read_marks.py, `TermsPy` and `LifetimePy` in
# engine/txn/lifetime.py.

cdef Py_ssize_t NO_COUNT_LIMIT = (<size_t>1 << 62)
cdef enum:
    NO_PART = 62                 # bits shifted out of a large value's size: it counts as its address


cdef class Readers


@cython.final
@cython.no_gc                    # so nobody takes `_readers` from it before it has ended
@cython.freelist(16)
cdef class Mark:
    """A reader of the snapshot `ts`. It ends when `end` is called, or when it is let go of.

    One that is `_watched` and was only let go of says so with a `ResourceWarning`, unless the
    database has ended: its marks are nobody's any more.
    """

    cdef readonly uint64_t ts
    cdef double _since           # monotonic seconds
    cdef unsigned long _thread
    cdef bint _watched
    cdef Readers _readers        # None: it is not in force, and nobody's neighbour
    cdef PyObject* _older        # Mark, borrowed: whoever is let go of leaves first
    cdef PyObject* _newer

    def __init__(self):
        raise TypeError("a mark is made by Readers.begin")

    cdef bint _leave(self) noexcept:
        """Whether it was in force until now."""
        if self._readers is None:
            return False
        if self._older != NULL:
            (<Mark>self._older)._newer = self._newer
        if self._newer != NULL:
            (<Mark>self._newer)._older = self._older
        else:
            self._readers._newest = self._older
        self._older = self._newer = NULL
        self._readers = None
        return True

    def end(self):
        """The reader is gone; a second call does nothing."""
        self._leave()

    def __dealloc__(self):
        cdef Readers readers = self._readers
        if self._leave() and self._watched and not readers.clock.ended:
            # Not by Python's function: what it raises Cython prints, as if the program had failed.
            if PyErr_WarnEx(
                PyExc_ResourceWarning, b"a transaction was neither committed nor discarded", 1
            ):
                PyErr_WriteUnraisable(NULL)


@cython.final
@cython.no_gc
cdef class Readers:
    """The marks in force."""

    cdef readonly Published clock
    cdef PyObject* _newest       # Mark, borrowed

    def __cinit__(self, Published clock not None):
        self.clock = clock

    cpdef Mark begin(self, at=None, bint watched=False):
        """A new reader of the snapshot `at`, or of everything published."""
        cdef Mark mark = Mark.__new__(Mark)
        mark.ts = self.clock.ts if at is None else at
        mark._since, mark._thread, mark._watched = monotonic_now(), PyThread_get_thread_ident(), watched
        mark._older, mark._readers = self._newest, self
        if self._newest != NULL:
            (<Mark>self._newest)._newer = <PyObject*>mark
        self._newest = <PyObject*>mark           # in force, and nobody ran since `ts` was read
        return mark

    def oldest(self, uint64_t published):
        """The oldest snapshot in use, `published` when that is older or there is none."""
        cdef PyObject* at = self._newest
        while at != NULL:
            published = min(published, (<Mark>at).ts)
            at = (<Mark>at)._older
        return published

    def held(self):
        """The marks at one moment: [(snapshot, beginning, thread)], oldest mark first."""
        cdef list found = []
        cdef Mark mark
        cdef PyObject* at = self._newest         # once the list is there: making one may collect,
        while at != NULL:                        # and so let go of marks; making it longer does not
            found.append(<Mark>at)
            at = (<Mark>at)._older
        found.reverse()
        return [(mark.ts, mark._since, mark._thread) for mark in found]


@cython.final
@cython.no_gc                    # so nobody takes `readers` from it
cdef class Terms:
    """What is the same for all transactions of a database. Limits are in bytes."""

    cdef readonly Readers readers
    cdef readonly Py_ssize_t size_limit, value_limit, large_limit
    cdef readonly bint conflicts, managed, namespaces

    def __cinit__(
        self, Readers readers not None, Py_ssize_t size_limit, Py_ssize_t value_limit,
        Py_ssize_t large_limit, bint conflicts, bint managed, bint namespaces,
    ):
        self.readers = readers
        self.size_limit, self.value_limit, self.large_limit = size_limit, value_limit, large_limit
        self.conflicts, self.managed, self.namespaces = conflicts, managed, namespaces


@cython.no_gc_clear              # what it refers to is there until it goes itself
cdef class Lifetime(EntryBuffer):
    """Begins, commits or is discarded. The hooks, in the twin, are for who knows the rest."""

    cdef object __weakref__
    cdef public object _engine, _reads, _covered, _cursors, _order
    cdef readonly uint64_t _read_ts, _commit_ts
    cdef readonly bint _finished, _update, _track
    cdef public bint _quiet
    cdef bint _claimed
    cdef Mark _mark
    cdef Terms _terms

    def __cinit__(self):
        self._finished = self._claimed = True    # until there is something to finish

    def __init__(self, engine not None, *, bint update, at=None, bint checked=False):
        """`checked` has conflicts detected whatever the option says, for the engine's own use."""
        cdef Terms terms = engine.terms
        if terms is None or self._terms is not None:
            raise TypeError("a transaction begins once, on terms")
        self._engine = engine
        self._update = update
        self._track = update and (checked or terms.conflicts)
        self._published = terms.readers.clock
        self._size_limit, self._value_limit = terms.size_limit, terms.value_limit
        self._large_limit, self._large_shift = terms.large_limit, NO_PART
        self._count_limit = NO_COUNT_LIMIT
        self._writes, self._special = {}, {}
        self._mark = terms.readers.begin(at, True)
        self._read_ts = self._mark.ts
        self._terms = terms
        self._collecting = update and not terms.namespaces
        self._finished = self._claimed = False

    def __enter__(self):
        self._usable()
        return self

    def __exit__(self, kind, error, trace):
        if not self._finished:
            try:
                if kind is None and self._writes:
                    self.commit()
            finally:
                if not self._finished:
                    self.discard()
        return False

    def commit(self):
        """Make the writes visible and durable as `sync` says; returns the commit timestamp.

        0 when nothing was written. `ConflictError`: nothing happened, run it again. Ends the
        transaction and its iterators whatever comes out, but for `meles.Error` in managed mode.
        """
        self._usable()
        if self._terms.managed and self._update:
            self._needs_ts()
        return self._commit_at(None)

    def discard(self):
        """End without writing. A second call, or one after commit, does nothing. Never raises."""
        if self._claim_end():
            self._finish()

    cdef bint _usable(self) except False:
        if self._finished or self._published is None or self._published.ended:
            self._check()
        if self._terms is None:
            raise TypeError("a transaction that did not begin")
        return True

    def _commit(self, ts):
        return self._commit_at(ts)

    cdef uint64_t _commit_at(self, ts) except? 0:
        if not self._claim_end():
            self._ends_elsewhere()
            raise TypeError("a transaction ends once")
        try:
            if self._writes:
                self._commit_ts = self._write(ts)
            return self._commit_ts
        finally:
            self._finish()

    cdef uint64_t _write(self, ts) except? 0:
        cdef bint has_read = bool(self._reads) or self._covered is not None
        cdef uint64_t done = 0
        cdef object writer, plain
        if self._terms.namespaces or self._cursors is not None:
            self._before_commit()
        if ts is None and not self._quiet and self._read_ts < OWN_VERSION:
            writer = self._engine.writer
            plain = None if writer is None else writer.plain
            if type(plain) is PlainWriter:
                done = (<PlainWriter>plain).commit_all(
                    self, <int64_t>self._read_ts if has_read else -1
                )
        return done if done else self._commit_at_length(ts, has_read)

    cdef bint _claim_end(self) noexcept:
        """Whether the caller is the one to end it."""
        cdef bint first = not self._claimed
        self._claimed = self._finished = True
        self._collecting = False
        return first

    cdef bint _finish(self) except False:
        self._mark._leave()
        if self._cursors is not None:
            self._end_cursors()
        self._covered = self._order = self._reads = None
        if self._writes:
            self._writes = {}
        if self._special:
            self._special = {}
        self._size = 0
        return True
