"""FAISS behind a small port."""
