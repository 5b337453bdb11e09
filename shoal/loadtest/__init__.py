"""Load on a cluster, and an honest account of how it bore it: `shoal loadtest`."""
