"""How processes of the cluster are started, watched and ended: a port, two adapters."""
