"""Ports of durable state (log, catalog, blobs) and their directory adapters."""
