"""Engines that run models."""

import os

# Read by OpenMP when torch loads. Spinning threads take the cores that routers and
# shards need: with others on 2 cores a batch took 1.8 s spinning, 1.0 s waiting.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
