# A buffer somebody else made, held for as long as anybody looks at it.
#
# Whoever looks into a mapping across a moment in which the GIL may be given up keeps a reference to
# this. A file is closed by dropping its own reference: the mapping goes then, or with the last reader.

@cython.no_gc
cdef class Mapped:
    """The bytes of a mapping."""

    cdef Py_buffer _view
    cdef bint _held
    cdef const uint8_t* base
    cdef uint64_t size

    def __cinit__(self, mapping):
        PyObject_GetBuffer(mapping, &self._view, PyBUF_SIMPLE)
        self._held = True
        self.base = <const uint8_t*>self._view.buf
        self.size = self._view.len

    def __dealloc__(self):
        if self._held:
            PyBuffer_Release(&self._view)
