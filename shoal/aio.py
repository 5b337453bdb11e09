"""Shoal with asyncio: `shoal.aio.connect` is the twin of `shoal.connect`."""

from shoal.client.asynchronous import AsyncClient, connect

__all__ = ["AsyncClient", "connect"]
