"""Text to vectors: cards, tokenising, batching, models."""
