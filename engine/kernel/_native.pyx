# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=False
"""The hot paths, compiled. What can be told from outside has a readable twin in Python, named in the
file it lives in, and the tests/contract suites hold both to the same results.

Runs in: supervisor and workers.
Invariants: (1) bytes from a file are bounded by checks of their own before they are used, so damage
raises and never crashes; (2) nothing here opens, maps or writes a file: buffers come in, and whoever
handed one in may take it back (`release`); (3) the GIL is held except where a comment says so, and
what it guards is named there; (4) a class that holds a buffer is no business of the collector's
(`no_gc`), which would clear a memoryview under it: nothing such a class holds leads back to it.
"""

cimport cython
from cython cimport boundscheck
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE,
)
from cpython.dict cimport PyDict_GetItem, PyDict_Next
from cpython.exc cimport PyErr_CheckSignals
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.ref cimport Py_INCREF, Py_XDECREF, PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

cdef extern from "bytes.h" nogil:
    uint16_t load16(const uint8_t* at)
    uint32_t load32(const uint8_t* at)
    uint64_t load64(const uint8_t* at)
    void store16(uint8_t* at, uint16_t value)
    void store32(uint8_t* at, uint32_t value)
    void store64(uint8_t* at, uint64_t value)
    void publish64(uint8_t* at, uint64_t value)
    uint64_t swapped64(uint64_t value)
    void prefetch(const void* at)
    void prefetch_all(const uint8_t* at, size_t size)
    void prefetch_soon(const uint8_t* at, size_t size)
    bint little_endian()
    uint8_t check_epoch()
    double monotonic_now()
    uint64_t _xxh64 "xxh64"(const uint8_t* at, size_t size)
    uint32_t key_tag(const uint8_t* at, size_t size, uint64_t seed)
    int key_compare(const uint8_t* a, size_t a_size, const uint8_t* b, size_t b_size)

cdef extern from "crc32c.h" nogil:
    int CRC_BY_FOLDING, crc_way
    bint upper_halves_in_use()
    void crc32c_prepare()
    uint32_t crc_by(int way, const uint8_t* at, size_t size, uint32_t crc)
    uint32_t crc_copied_by(int way, uint8_t* to, const uint8_t* at, size_t size, uint32_t crc)
    uint32_t crc32c_extend_copied(uint8_t* to, const uint8_t* at, size_t size, uint32_t crc)
    uint32_t crc32c_extend(const uint8_t* at, size_t size, uint32_t crc)

cdef extern from "Python.h" nogil:
    ctypedef void* PyThread_type_lock
    ctypedef enum PyLockStatus:
        PY_LOCK_FAILURE
        PY_LOCK_ACQUIRED
        PY_LOCK_INTR
    int NOWAIT_LOCK
    PyThread_type_lock PyThread_allocate_lock()
    void PyThread_free_lock(PyThread_type_lock lock)
    int PyThread_acquire_lock(PyThread_type_lock lock, int wait)
    PyLockStatus PyThread_acquire_lock_timed(PyThread_type_lock lock, long long us, int interruptible)
    void PyThread_release_lock(PyThread_type_lock lock)
    unsigned long PyThread_get_thread_ident()

cdef extern from "Python.h":
    ctypedef struct PyTypeObject:
        object (*tp_iternext)(object)
    PyObject* PyExc_ResourceWarning
    int PyErr_WarnEx(PyObject* category, const char* text, Py_ssize_t level) noexcept
    void PyErr_WriteUnraisable(PyObject* where) noexcept

from os import urandom as _urandom
from threading import TIMEOUT_MAX as _TIMEOUT_MAX
from time import monotonic as _monotonic

if not little_endian():
    raise ImportError("the compiled kernel reads little-endian columns in place")
crc32c_prepare()


cdef enum:
    MAX_KEY_BYTES = 65000        # engine.ids
    FIRST_RESERVED = 0x21        # the first byte of RESERVED_PREFIX


cdef inline uint64_t xxh64(const uint8_t* at, size_t size) noexcept nogil:
    return _xxh64(at, size)


include "handover.pxi"


CRC_WAYS = crc_way + 1           # of the three to a checksum, those this machine has


def crc32c(const uint8_t[::1] data not None, uint32_t start=0, *, int way=crc_way):
    """CRC-32C of the bytes, chained from `start`, without the GIL.

    `way` is for the tests that hold all of them to the library.
    """
    cdef const uint8_t* at = &data[0] if data.shape[0] else NULL
    cdef size_t size = data.shape[0]
    with nogil:                                  # the buffer is held
        handover_give_back()                     # who checks a whole file needs no interpreter
        start = ~crc_by(min(way, crc_way), at, size, ~start)
        handover_ask()
    handover_take()
    return start


def crc32c_leaves_halves(const uint8_t[::1] data not None, uint32_t start=0):
    """Whether a checksum by folding leaves the processor in a state that slows down what follows;
    for the tests.
    """
    cdef bytes copy
    if crc_way != CRC_BY_FOLDING or not data.shape[0]:
        raise ValueError("nothing is folded")
    copy = PyBytes_FromStringAndSize(NULL, data.shape[0])
    crc_by(crc_way, &data[0], data.shape[0], start)
    if upper_halves_in_use():
        return True
    crc_copied_by(
        crc_way, <uint8_t*>PyBytes_AS_STRING(copy), &data[0], data.shape[0], start
    )
    return upper_halves_in_use()


def crc32c_copied(const uint8_t[::1] data not None, uint32_t start=0, *, int way=crc_way):
    """CRC-32C of the bytes, and the bytes, copied while it was taken; for the tests."""
    cdef Py_ssize_t size = data.shape[0]
    cdef bytes copy = PyBytes_FromStringAndSize(NULL, size)
    cdef uint8_t* to = <uint8_t*>PyBytes_AS_STRING(copy)
    start = ~crc_copied_by(min(way, crc_way), to, &data[0] if size else to, size, ~start)
    return start, copy


def key_hash(bytes key not None):
    """XXH64 of a key, as `xxhash.xxh64_intdigest`."""
    return xxh64(<const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))


include "mapped.pxi"
include "block.pxi"
include "key_heads.pxi"
include "table_blocks.pxi"
include "log_index.pxi"
include "recycler.pxi"
include "values.pxi"
include "plain_writer.pxi"
include "lifetime.pxi"
include "points.pxi"
include "scan.pxi"
include "buffer.pxi"
include "block_maker.pxi"
include "retention.pxi"
include "merge.pxi"
include "flush.pxi"
