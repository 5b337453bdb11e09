"""The commands of `shoal`, one module for each family."""
