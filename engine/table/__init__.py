"""Immutable sorted tables of columnar blocks."""
