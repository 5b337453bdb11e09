"""Scoring kernels, and the NumPy oracles that define their bits."""
