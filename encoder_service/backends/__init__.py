"""Engines that run models."""

import os

# Read by OpenMP when torch loads. Spinning threads take the cores that routers and
# shards need: with others on 2 cores a batch took 1.8 s spinning, 1.0 s waiting.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The same text, the same bits, whoever its batch-mates are: without strict reproducibility, MKL's
# products differ with the number of rows on some processors. It reads this at its first product.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
