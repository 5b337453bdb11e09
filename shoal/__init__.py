"""Shoal: distributed dense retrieval."""
