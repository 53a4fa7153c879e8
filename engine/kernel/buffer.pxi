# A growing run of bytes outside Python's heap, so that it can grow without the GIL.

cdef struct Buffer:
    uint8_t* data
    size_t size
    size_t room


cdef bint grow(Buffer* buffer, size_t more) noexcept nogil:
    """Room for `more` bytes, at least doubling; False without memory."""
    cdef size_t room = 2 * buffer.room
    cdef uint8_t* data
    if room < 256:
        room = 256
    if room < buffer.size + more:
        room = buffer.size + more
    data = <uint8_t*>realloc(buffer.data, room)
    if data == NULL:
        return False
    buffer.data = data
    buffer.room = room
    return True


cdef inline bint append(Buffer* buffer, const void* data, size_t size) noexcept nogil:
    if buffer.room - buffer.size < size and not grow(buffer, size):
        return False
    if size:
        memcpy(buffer.data + buffer.size, data, size)
    buffer.size += size
    return True


cdef inline bint append8(Buffer* buffer, uint8_t value) noexcept nogil:
    return append(buffer, &value, 1)


cdef inline bint append16(Buffer* buffer, uint16_t value) noexcept nogil:
    return append(buffer, &value, 2)


cdef inline bint append32(Buffer* buffer, uint32_t value) noexcept nogil:
    return append(buffer, &value, 4)


cdef inline bint append64(Buffer* buffer, uint64_t value) noexcept nogil:
    return append(buffer, &value, 8)


cdef inline void drop(Buffer* buffer) noexcept nogil:
    free(buffer.data)
    buffer.data = NULL
    buffer.size = buffer.room = 0


cdef inline object buffer_bytes(const Buffer* buffer):
    return PyBytes_FromStringAndSize(<const char*>buffer.data, buffer.size)


cdef class Chunk:
    """The bytes of a Buffer, taken over without a copy; read them through a memoryview."""

    cdef Buffer _bytes

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self._bytes.data, self._bytes.size, True, flags)

    def __dealloc__(self):
        drop(&self._bytes)


cdef object taken_over(Buffer* buffer):
    """A memoryview of what is in the buffer, which is empty afterwards."""
    cdef Chunk chunk = Chunk()
    chunk._bytes = buffer[0]
    buffer.data = NULL
    buffer.size = buffer.room = 0
    return memoryview(chunk)
