"""Pure: row tables, visibility, candidate guard, sealing policy."""
