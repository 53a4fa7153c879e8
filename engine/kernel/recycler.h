/* Bytes that become other bytes: whether somebody else has them, and what makes them new. */

#ifndef MELES_RECYCLER_H
#define MELES_RECYCLER_H

#include <Python.h>

/* Whether the caller's reference is the only one, and stays it while the caller has the GIL. */
static inline int has_one_owner(PyObject *thing) {
#if defined(Py_GIL_DISABLED) || defined(PYPY_VERSION)
    (void)thing;
    return 0; /* another thread may be about to take one; or counts say nothing */
#else
    return Py_REFCNT(thing) == 1;
#endif
}

/* Bytes with one owner, and room for `size`, are of that size, have no hash and are to be written. */
static inline void renew_bytes(PyObject *data, Py_ssize_t size) {
    Py_SET_SIZE((PyVarObject *)data, size);
    PyBytes_AS_STRING(data)[size] = 0;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations" /* ob_shash, as part of the API */
    ((PyBytesObject *)data)->ob_shash = -1;
#pragma GCC diagnostic pop
}

#endif
