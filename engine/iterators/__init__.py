"""Merging sources into one ordered, visible stream."""
