# A buffer somebody else made, held for as long as anybody looks at it.
#
# Whoever looks into a mapping across a moment in which the GIL may be given up keeps a reference to
# this. A file is closed by dropping its own reference: the mapping goes then, or with the last reader.

cdef enum:
    CHUNK_BITS = 16              # engine/fs/page_clock.py has the same numbers
    CHUNK_USED = 2


@cython.no_gc
cdef class Mapped:
    """The bytes of a mapping; with `pages` (PageMarks) somebody counts which of them are resident."""

    cdef Py_buffer _view
    cdef bint _held
    cdef const uint8_t* base
    cdef uint64_t size
    cdef Py_buffer _marks_view
    cdef bint _marked
    cdef uint8_t* _marks         # NULL: nobody counts
    cdef object _pages

    def __cinit__(self, mapping, pages=None):
        PyObject_GetBuffer(mapping, &self._view, PyBUF_SIMPLE)
        self._held = True
        self.base = <const uint8_t*>self._view.buf
        self.size = self._view.len
        if pages is not None:
            PyObject_GetBuffer(pages.marks, &self._marks_view, PyBUF_WRITABLE)
            self._marked = True
            if <uint64_t>self._marks_view.len << CHUNK_BITS < self.size:
                raise ValueError("fewer marks than chunks")
            self._marks = <uint8_t*>self._marks_view.buf
            self._pages = pages

    def __dealloc__(self):
        if self._held:
            PyBuffer_Release(&self._view)
        if self._marked:
            PyBuffer_Release(&self._marks_view)

    cdef inline bint used(self, uint64_t offset, uint64_t size) except False:
        """Somebody has just looked at these bytes, at least one, which lie within the mapping."""
        cdef uint64_t chunk
        if self._marks != NULL:
            for chunk in range(offset >> CHUNK_BITS, ((offset + size - 1) >> CHUNK_BITS) + 1):
                if self._marks[chunk] != CHUNK_USED:
                    self._mark(chunk)
        return True

    cdef bint _mark(self, uint64_t chunk) except False:
        cdef bint absent = not self._marks[chunk]
        self._marks[chunk] = CHUNK_USED
        if absent:
            self._pages.missed()
        return True
