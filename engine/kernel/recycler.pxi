# Values that a batch of a scan handed out and nobody kept, handed out again with a later value in them.
#
# `for key, value in db.items()` lets go of a value when it has the next. Just over a kilobyte is more
# than the C library's thread cache takes, so that `free` and `malloc` go the long way. As `zip` does
# with its tuple: what has no other owner is used again. There is no Python twin: nobody can tell.

cdef enum:
    RECYCLED_SMALLEST = 960      # what is smaller comes as fast from the C library
    RECYCLED_LARGEST = 128 << 10 # two of these are held, while a batch is gone through
    RECYCLED_SLACK = 8           # a value may leave one part of so many unused

cdef extern from "recycler.h":
    bint has_one_owner(PyObject* thing)
    void renew_bytes(PyObject* data, Py_ssize_t size)


@cython.final
cdef class Recycler:
    """Holds the last two values: when one is made, the caller still has the one before."""

    cdef PyObject* _older
    cdef PyObject* _newer
    cdef Py_ssize_t _older_room, _newer_room

    def __dealloc__(self):
        Py_XDECREF(self._older)
        Py_XDECREF(self._newer)

    cdef bytes take(self, Py_ssize_t size):
        """Bytes of so many, which whoever asked writes before anybody else sees them."""
        cdef PyObject* oldest = self._older
        cdef Py_ssize_t room = self._older_room
        cdef bytes fresh
        if not RECYCLED_SMALLEST <= size <= RECYCLED_LARGEST:
            return PyBytes_FromStringAndSize(NULL, size)
        if (
            oldest != NULL and has_one_owner(oldest)
            and size <= room <= size + size // RECYCLED_SLACK
        ):
            renew_bytes(oldest, size)
            self._push(oldest, room)
            return <bytes>oldest
        fresh = PyBytes_FromStringAndSize(NULL, size)
        Py_INCREF(fresh)
        self._push(<PyObject*>fresh, size)
        Py_XDECREF(oldest)
        return fresh

    cdef inline void _push(self, PyObject* newest, Py_ssize_t room) noexcept:
        self._older, self._older_room = self._newer, self._newer_room
        self._newer, self._newer_room = newest, room


def recycles(Py_ssize_t first, Py_ssize_t later, *, bint kept=False):
    """Whether bytes of `first`, not `kept`, become those of `later`, two values on; for the tests."""
    cdef Recycler spare = Recycler()
    cdef bytes value = spare.take(first), mine = value if kept else None
    cdef PyObject* was = spare._newer
    value = spare.take(first)
    value = None
    value = spare.take(later)
    return was != NULL and spare._newer == was and <PyObject*>value == was
