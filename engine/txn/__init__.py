"""Timestamps, read marks, conflicts, transactions."""
