"""Deadlines in seconds where the caller gives none."""

SEARCH_S = 10.0
SEARCH_BATCH_S = 60.0
GET_S = 30.0
DELETE_S = 30.0
STATUS_S = 10.0
CREATE_S = 120.0
DROP_S = 60.0
OPTIMIZE_S = 600.0
ACCEPT_LOSS_S = 60.0
INGEST_STALL_S = 300.0
