"""Text to vectors: cards, tokenising, batching, models."""

DEFAULT_CHUNK_TOKENS = 128
"""Tokens of text in one passage of a new collection. A passage also holds the
title and the special tokens, so the card's length may cut this further.
"""

DEFAULT_CHUNK_OVERLAP = 32
"""Tokens that neighbouring passages of a new collection share."""
