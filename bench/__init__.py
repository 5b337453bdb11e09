"""Commands that measure Shoal: each prints JSON with its machine, versions and peers."""
