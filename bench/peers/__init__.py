"""One command per peer, each run in `.bench-venv` by `bench.single --peers`."""
