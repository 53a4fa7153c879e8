# Values that a scan handed out and nobody kept, handed out again with the next value in them.
#
# `for key, value in db.items()` lets go of a value when it has the next. Just over a kilobyte is more
# than the C library's thread cache takes, so that `free` and `malloc` go the long way, and what is
# written lies in memory that is near. As `zip` does with its tuple: what has no other owner is used
# again. There is no Python twin, since nobody can tell.

cdef enum:
    RECYCLED_SMALLEST = 512      # smaller ones come from Python's own pools, as fast
    RECYCLED_LARGEST = 128 << 10 # no more than two of these are held
    RECYCLED_SLACK = 8           # a value may leave one part of so many unused

cdef extern from "recycler.h":
    bint has_one_owner(PyObject* thing)
    void renew_bytes(PyObject* data, Py_ssize_t size)


cdef class Recycler:
    """Holds the last two values of a scan: when one is made, the caller still has the one before."""

    cdef PyObject* _older
    cdef PyObject* _newer
    cdef Py_ssize_t _older_room, _newer_room

    def __dealloc__(self):
        Py_XDECREF(self._older)
        Py_XDECREF(self._newer)

    cdef bytes take(self, Py_ssize_t size):
        """Bytes of so many, which whoever asked writes before anybody else sees them."""
        cdef PyObject* found = self._older
        cdef Py_ssize_t room = self._older_room
        cdef bytes fresh
        if not RECYCLED_SMALLEST <= size <= RECYCLED_LARGEST:
            return PyBytes_FromStringAndSize(NULL, size)
        self._older, self._older_room = self._newer, self._newer_room
        self._newer = NULL
        if found != NULL:
            if has_one_owner(found) and size <= room <= size + size // RECYCLED_SLACK:
                renew_bytes(found, size)
                self._newer, self._newer_room = found, room
                return <bytes>found
            Py_XDECREF(found)
        fresh = PyBytes_FromStringAndSize(NULL, size)
        Py_INCREF(fresh)
        self._newer, self._newer_room = <PyObject*>fresh, size
        return fresh
