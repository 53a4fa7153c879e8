"""Configurations shipped with the package: `default`, `tiny`, `durable`, `ingest`."""
