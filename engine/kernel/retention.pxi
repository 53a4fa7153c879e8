# Which versions of a key stay, entry by entry (the Python twin is compaction/retention.py, which has
# the rules and their reasons).

cdef enum:                       # what `judge` answers
    ENTRY_STAYS = 0
    ENTRY_GOES = 1
    ENTRY_COPY = 2               # of the entry before it, from an older source; not counted
    ENTRY_UNSORTED = 3
    ENTRY_NO_MEMORY = 4

cdef struct Span:
    const uint8_t* at
    size_t size


cdef Span bytes_span(bytes part) except *:
    """Where these bytes lie; they must stay."""
    cdef Span span
    span.at = <const uint8_t*>PyBytes_AS_STRING(part)
    span.size = PyBytes_GET_SIZE(part)
    return span


cdef Buffer spans_of(list parts) except *:
    """Where each of these lies."""
    cdef Buffer spans
    cdef Span span
    memset(&spans, 0, sizeof(Buffer))
    for part in parts:
        span = bytes_span(part)
        if not append(&spans, &span, sizeof(Span)):
            drop(&spans)
            raise MemoryError
    return spans


cdef class Retention:
    """Judges entries as they come, keys ascending, versions descending."""

    cdef list _kept_alive
    cdef uint64_t _discard_ts
    cdef uint64_t _to_keep
    cdef uint64_t _now_ms
    cdef Buffer _lows                   # Span
    cdef Buffer _highs                  # Span
    cdef size_t _below                  # ranges whose low is <= the key asked about last
    cdef Buffer _drops                  # Span
    cdef Buffer _drop_ts                # u64
    # the key in hand
    cdef uint64_t keys                  # begun so far, it included
    cdef Buffer _key
    cdef uint64_t _version
    cdef uint64_t _counted
    cdef bint _ended
    cdef bint _dropping
    cdef uint64_t _dropped_to
    cdef readonly uint64_t dropped
    cdef readonly uint64_t copies       # of a version from an older source
    cdef readonly uint64_t tombstones

    def __init__(
        self, uint64_t discard_ts, uint64_t versions_to_keep, uint64_t now_ms, list below not None,
        list drops not None,
    ):
        """As `Policy`; `drops` are those due alone."""
        if self._kept_alive is not None:
            raise RuntimeError("a policy is set once")
        lows = [low for low, _ in below]
        highs = [high for _, high in below]
        prefixes = [prefix for prefix, _ in drops]
        self._kept_alive = [lows, highs, prefixes]
        self._discard_ts = discard_ts
        self._to_keep = versions_to_keep
        self._now_ms = now_ms
        self._lows = spans_of(lows)
        self._highs = spans_of(highs)
        self._drops = spans_of(prefixes)
        for _, ts in drops:
            if not append64(&self._drop_ts, ts):
                raise MemoryError

    def __dealloc__(self):
        drop(&self._lows)
        drop(&self._highs)
        drop(&self._drops)
        drop(&self._drop_ts)
        drop(&self._key)

    cdef int judge(self, Entry* entry) noexcept nogil:
        """ENTRY_STAYS, then perhaps as a bare tombstone of its version, or why not."""
        cdef int order = -1
        cdef bint gone
        if self.keys:
            order = key_compare(self._key.data, self._key.size, entry.key, entry.key_size)
            if order > 0 or (order == 0 and entry.version > self._version):
                return ENTRY_UNSORTED
            if order == 0 and entry.version == self._version:
                self.copies += 1
                return ENTRY_COPY
        if order and not self._begin_key(entry):
            return ENTRY_NO_MEMORY
        self._version = entry.version
        if self._ended or (self._dropping and entry.version <= self._dropped_to):
            self.dropped += 1
            return ENTRY_GOES
        if entry.version > self._discard_ts or entry.meta & META_MERGE:
            return ENTRY_STAYS
        gone = entry.meta & META_DELETE or 0 < entry.expiry <= self._now_ms
        self._counted += 1
        self._ended = gone or entry.meta & META_DISCARD_EARLIER or self._counted == self._to_keep
        if gone:
            if self._hides_nothing():
                self.dropped += 1
                self.tombstones += 1
                return ENTRY_GOES
            if not entry.meta & META_DELETE:
                entry.meta = META_DELETE
                entry.expiry = 0
                entry.value_size = 0
        return ENTRY_STAYS

    cdef bint _begin_key(self, const Entry* entry) noexcept nogil:
        cdef const Span* prefixes = <const Span*>self._drops.data
        cdef uint64_t ts
        cdef size_t nth
        self._key.size = 0
        if not append(&self._key, entry.key, entry.key_size):
            return False
        self.keys += 1
        self._counted = 0
        self._ended = self._dropping = False
        for nth in range(self._drops.size // sizeof(Span)):
            if prefixes[nth].size <= self._key.size and not (
                prefixes[nth].size and memcmp(prefixes[nth].at, self._key.data, prefixes[nth].size)
            ):
                ts = load64(self._drop_ts.data + 8 * nth)
                if not self._dropping or ts > self._dropped_to:
                    self._dropped_to = ts
                self._dropping = True
        return True

    cdef bint _hides_nothing(self) noexcept nogil:
        """Whether no older version of the key in hand can lie outside the job."""
        cdef const Span* lows = <const Span*>self._lows.data
        cdef const Span* high
        while self._below < self._lows.size // sizeof(Span) and key_compare(
            lows[self._below].at, lows[self._below].size, self._key.data, self._key.size
        ) <= 0:
            self._below += 1
        if not self._below:
            return True
        high = <const Span*>self._highs.data + (self._below - 1)
        return key_compare(high.at, high.size, self._key.data, self._key.size) < 0
