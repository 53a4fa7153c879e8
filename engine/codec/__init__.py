"""Byte layouts shared by the files: header, entry meta bits, value pointer, columns."""
