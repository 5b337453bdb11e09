"""Parts of a collection: segments, tail, search."""
