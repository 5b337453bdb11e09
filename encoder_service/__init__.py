"""Text to vectors: cards, tokenising, batching, models."""

import os

# The same text, the same bits, whoever its batch-mates are: without strict reproducibility, MKL's
# products differ with the number of rows on some processors. It reads this at its first product.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

DEFAULT_CHUNK_TOKENS = 128
"""Tokens of text in one passage of a new collection. A passage also holds the
title and the special tokens, so the card's length may cut this further.
"""

DEFAULT_CHUNK_OVERLAP = 32
"""Tokens that neighbouring passages of a new collection share."""
