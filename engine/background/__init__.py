"""Background work: when a flush, a compaction or a collection is due, and installing its result."""
