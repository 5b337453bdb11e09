"""Shoal: distributed dense retrieval.

>>> import shoal
>>> with shoal.connect("127.0.0.1:50051") as client:  # doctest: +SKIP
...     for hit in client.search("papers", "how do vaccines work?"):
...         print(hit.score, hit.title)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal import aio as aio
    from shoal.client.asynchronous import AsyncClient as AsyncClient
    from shoal.client.model import Answer as Answer
    from shoal.client.model import Hit as Hit
    from shoal.client.model import IngestReport as IngestReport
    from shoal.client.sync import Client as Client
    from shoal.client.sync import connect as connect
    from shoal.errors import ShoalError as ShoalError
    from shoal.types import Coverage as Coverage

# Loaded when asked for: the services import `shoal.types` and its like without
# the client, and `shoal --help` without gRPC.
_HOMES = {
    "Answer": "shoal.client.model",
    "AsyncClient": "shoal.client.asynchronous",
    "Client": "shoal.client.sync",
    "Coverage": "shoal.types",
    "Hit": "shoal.client.model",
    "IngestReport": "shoal.client.model",
    "ShoalError": "shoal.errors",
    "connect": "shoal.client.sync",
}

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "Coverage",
    "Hit",
    "IngestReport",
    "ShoalError",
    "aio",
    "connect",
]


def __getattr__(name: str) -> Any:
    if name == "aio":
        return importlib.import_module("shoal.aio")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'shoal' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
