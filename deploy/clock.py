"""The controller's clock: its event loop's, so that whoever drives the loop drives time."""

import asyncio


def now_ns() -> int:
    """Nanoseconds since some moment in the past; only differences mean something."""
    return int(asyncio.get_running_loop().time() * 1e9)
