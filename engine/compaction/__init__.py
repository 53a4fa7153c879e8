"""Choosing what to compact (pure) and doing it (in a worker)."""
