"""Pure: cards, chunking, batch planning."""
