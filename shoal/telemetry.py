"""Logging for every process: one line per event, key=value, to stderr."""

import logging
import sys


def configure_logging(process: str, level: int = logging.INFO) -> None:
    """Sends the `shoal` loggers of this process to stderr, marked with its name.

    The root logger is left alone: it belongs to whoever embeds Shoal.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s %(levelname)s {process} %(name)s %(message)s")
    )
    for name in ("shoal", "encoder_service", "shard_service", "router", "deploy"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
