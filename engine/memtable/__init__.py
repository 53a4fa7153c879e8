"""The newest writes: an index over a mapped write-ahead log."""
