"""Backup streams: their format, writing them, and making a new directory of them."""
