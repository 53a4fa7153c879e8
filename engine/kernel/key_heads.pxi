# Where a key falls among sorted ones (key_heads.h): tables in their level, blocks in their table.
#
# The Python twin is `bisect`.

cdef extern from "key_heads.h" nogil:
    ctypedef struct KeyHeads:
        uint64_t* tops
        size_t bytes
    bint heads_begin(
        KeyHeads* it, size_t count, const uint8_t* first, size_t first_size,
        const uint8_t* last, size_t last_size,
    )
    void heads_set(
        KeyHeads* it, size_t nth, const uint8_t* key, size_t size, uint32_t place, uint32_t length
    )
    uint32_t heads_place(const KeyHeads* it, size_t nth)
    uint32_t heads_size(const KeyHeads* it, size_t nth)
    void heads_free(KeyHeads* it)
    void heads_ask(const KeyHeads* it)
    size_t heads_find(const KeyHeads* it, const uint8_t* key, size_t size, size_t* end)


def first_from(list keys not None, bytes key not None):
    """The first of sorted keys that is >= `key`, and whether the places of all are as given; for the
    tests.
    """
    cdef KeyHeads heads
    cdef size_t low, high, nth, count = len(keys)
    cdef bytes first = keys[0], last = keys[count - 1], each
    cdef bint kept = True
    if not heads_begin(
        &heads, count, <const uint8_t*>PyBytes_AS_STRING(first), len(first),
        <const uint8_t*>PyBytes_AS_STRING(last), len(last),
    ):
        raise MemoryError
    try:
        for nth in range(count):
            each = keys[nth]
            heads_set(
                &heads, nth, <const uint8_t*>PyBytes_AS_STRING(each), len(each), 3 * nth, 5 * nth
            )
        for nth in range(count):
            kept = kept and heads_place(&heads, nth) == 3 * nth and heads_size(&heads, nth) == 5 * nth
        low = heads_find(&heads, <const uint8_t*>PyBytes_AS_STRING(key), len(key), &high)
        while low < high and <bytes>keys[low] < key:
            low += 1
        return low, kept
    finally:
        heads_free(&heads)
