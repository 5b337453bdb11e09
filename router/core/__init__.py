"""Pure: rounds, merge, coverage, topology."""
