"""Encryption at rest: the key registry, data keys, and sealing what goes into one file."""
