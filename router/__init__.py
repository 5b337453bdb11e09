"""Scatter-gather: rounds, merging, coverage."""
