"""Wraps what searches and what encodes, as soon as it is imported; see the package."""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

SEARCH_S = float(os.environ.get("BENCH_SEARCH_S", "0"))
SLOW_SHARE = float(os.environ.get("BENCH_SLOW_SHARE", "0"))
SLOW_S = float(os.environ.get("BENCH_SLOW_S", "0"))
ENCODE_S = float(os.environ.get("BENCH_ENCODE_S", "0"))


def _search(module: ModuleType) -> None:
    honest = module.Shard.search
    chance = random.Random(os.getpid())

    def slowed(shard: Any, view: Any, queries: Any, top_k: Any, wanted: Any) -> Any:
        end = time.monotonic()
        for _ in range(len(queries)):
            if not wanted().any():
                break
            end += SEARCH_S + (SLOW_S if chance.random() < SLOW_SHARE else 0.0)
            time.sleep(max(0.0, end - time.monotonic()))
        return honest(shard, view, queries, top_k, wanted)

    module.Shard.search = slowed  # type: ignore[attr-defined]


def _encode(module: ModuleType) -> None:
    honest = module.TorchBackend.encode

    def slowed(backend: Any, texts: Any, length: int) -> Any:
        end = time.monotonic() + ENCODE_S * len(texts) * (1 + length / 100)
        found = honest(backend, texts, length)
        time.sleep(max(0.0, end - time.monotonic()))
        return found

    module.TorchBackend.encode = slowed  # type: ignore[attr-defined]


WRAPPED: dict[str, Callable[[ModuleType], None]] = {}
if SEARCH_S:
    WRAPPED["shard_service.shard"] = _search
if ENCODE_S:
    WRAPPED["encoder_service.backends.torch_backend"] = _encode


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules to wrap as everybody does, and wraps them once they are loaded."""

    def find_spec(
        self, name: str, path: Any, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        wrap = WRAPPED.pop(name, None)
        spec = None if wrap is None else importlib.util.find_spec(name)
        if wrap is None or spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def execute(module: ModuleType) -> None:
            load(module)
            wrap(module)

        spec.loader.exec_module = execute  # type: ignore[method-assign]
        return spec


if WRAPPED:
    sys.meta_path.insert(0, _Finder())
