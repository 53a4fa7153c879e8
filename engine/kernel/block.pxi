# A table block's payload, read in place (engine/table/FORMAT.md; the Python twin is table/block.py).
#
# Nothing read from a payload is trusted: every count and offset is checked against the payload's own
# length before it is used, also where a checksum held, since the bytes lie in a mapped file.

cdef enum:
    PAYLOAD_HEAD_BYTES = 24
    BLOCK_HEAD_BYTES = 16
    SEARCHED_BYTES = 1024        # of a block's beginning are fetched before it is searched
    FLAG_TOMBSTONE = 0x01
    FLAG_EXPIRY = 0x02
    FLAG_POINTER = 0x04
    FLAG_MULTI = 0x08
    FLAG_META = 0x10
    FLAG_USER = 0x20
    FLAG_MASK = 0x3F
    META_DELETE = 0x01
    META_POINTER = 0x02
    META_DISCARD_EARLIER = 0x04
    META_MERGE = 0x08

cdef struct Payload:
    uint32_t count
    uint32_t flags
    uint64_t max_version
    uint64_t min_version
    const uint8_t* versions      # u64 each
    const uint8_t* expiries      # u64 each, NULL without the column
    const uint8_t* key_words     # u32, count + 1
    const uint8_t* value_words   # u32, count + 1
    const uint8_t* metas         # NULL without the column
    const uint8_t* users         # NULL without the column
    const uint8_t* keys
    size_t keys_size
    const uint8_t* values
    size_t values_size

cdef struct Entry:
    const uint8_t* key
    size_t key_size
    const uint8_t* value
    size_t value_size
    uint64_t version
    uint64_t expiry
    uint32_t meta                # user << 8 | meta bits


cdef bint open_payload(const uint8_t* base, size_t size, Payload* out) noexcept nogil:
    """Find the columns; False when the head does not fit the payload."""
    cdef uint64_t at
    if size < PAYLOAD_HEAD_BYTES:
        return False
    out.count = load32(base)
    out.flags = load16(base + 4)
    out.max_version = load64(base + 8)
    out.min_version = load64(base + 16)
    if load16(base + 6) or not out.count or out.flags & ~<uint32_t>FLAG_MASK:
        return False
    if out.count > size:                       # so that the sums below cannot overflow
        return False
    at = PAYLOAD_HEAD_BYTES
    out.versions = base + at
    at += 8 * <uint64_t>out.count
    out.expiries = NULL
    if out.flags & FLAG_EXPIRY:
        out.expiries = base + at
        at += 8 * <uint64_t>out.count
    out.key_words = base + at
    at += 4 * <uint64_t>out.count + 4
    out.value_words = base + at
    at += 4 * <uint64_t>out.count + 4
    out.metas = NULL
    if out.flags & FLAG_META:
        out.metas = base + at
        at += out.count
    out.users = NULL
    if out.flags & FLAG_USER:
        out.users = base + at
        at += out.count
    if at > size:
        return False
    out.keys = base + at
    out.keys_size = load32(out.key_words + 4 * <size_t>out.count)
    if out.keys_size > size - at:
        return False
    at += out.keys_size
    out.values = base + at
    out.values_size = load32(out.value_words + 4 * <size_t>out.count)
    return out.values_size == size - at


cdef inline bint key_of(const Payload* p, size_t nth, const uint8_t** key, size_t* size) noexcept nogil:
    """The nth key; False when its offsets are out of order."""
    cdef uint32_t start = load32(p.key_words + 4 * nth)
    cdef uint32_t end = load32(p.key_words + 4 * nth + 4)
    if start > end or end > p.keys_size:
        return False
    key[0] = p.keys + start
    size[0] = end - start
    return True


cdef inline bint entry_of(const Payload* p, size_t nth, Entry* out) noexcept nogil:
    """The nth entry; False when its offsets are out of order."""
    cdef uint32_t start = load32(p.value_words + 4 * nth)
    cdef uint32_t end = load32(p.value_words + 4 * nth + 4)
    if start > end or end > p.values_size or not key_of(p, nth, &out.key, &out.key_size):
        return False
    out.value = p.values + start
    out.value_size = end - start
    out.version = load64(p.versions + 8 * nth)
    out.expiry = 0 if p.expiries == NULL else load64(p.expiries + 8 * nth)
    out.meta = 0 if p.metas == NULL else p.metas[nth]
    if p.users != NULL:
        out.meta |= <uint32_t>p.users[nth] << 8
    return True


cdef Py_ssize_t lower_bound(const Payload* p, const uint8_t* key, size_t size) noexcept nogil:
    """The first entry whose key is >= `key`, `count` when there is none, -1 for damage."""
    cdef size_t low = 0, high = p.count, middle, found_size
    cdef const uint8_t* found
    while low < high:
        middle = (low + high) >> 1
        if not key_of(p, middle, &found, &found_size):
            return -1
        if key_compare(found, found_size, key, size) < 0:
            low = middle + 1
        else:
            high = middle
    return <Py_ssize_t>low


cdef int find_entry(const Payload* p, const uint8_t* key, size_t size, uint64_t ts, Entry* out) noexcept nogil:
    """The newest version <= ts of a key: 1 found, 0 not here, -1 damage."""
    cdef Py_ssize_t nth = lower_bound(p, key, size)
    if nth < 0:
        return -1
    while nth < <Py_ssize_t>p.count:
        if not entry_of(p, nth, out):
            return -1
        if out.key_size != size or memcmp(out.key, key, size) != 0:
            return 0
        if out.version <= ts:
            return 1
        nth += 1
    return 0
