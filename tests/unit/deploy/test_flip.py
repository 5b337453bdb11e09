"""Flips that fail leave every shard that answers open to its writers."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from deploy.calls import WRITERS, Calls
from deploy.copying import Copier
from deploy.core.creation import Bounds, Wish, check_wish, settle
from deploy.core.state import Phase, Process, Role, ShardPhase, ShardView
from deploy.fleet import Tracked
from deploy.generations import Generations
from deploy.launchers.processes import ProcessLauncher
from deploy.reconciler import Reconciler
from deploy.records import Record, new_record, next_record
from deploy.settings import ControllerSettings
from deploy.shards import GenerationShards
from deploy.store import Store
from shoal.errors import ClusterUnreachable
from shoal.rpc.shard.v1 import shard_pb2
from shoal.storage.directory import open_storage

SERVERS = ("server-0", "server-1")
Key = tuple[int, int]
"""Generation and shard."""


class Servers:
    """Answers as empty shards do, until server-1 dies when everything is closed to writers."""

    def __init__(self) -> None:
        self.writers: dict[Key, int] = {}
        self.down = False

    async def shard(self, address: str, method: str, request: Any, timeout_s: float) -> Any:
        if self.down and address == "server-1":
            raise ClusterUnreachable("the process has gone")
        if method == "ListDocuments":
            closed = set(self.writers.values()) == {shard_pb2.WRITERS_NOBODY}
            self.down = self.down or closed
            return shard_pb2.ListDocumentsResponse(last=True)
        assert method == "SetWriters"
        self.writers[request.key.generation, request.key.shard] = request.writers
        return shard_pb2.SetWritersResponse(writer_epoch=1)


def placed(record: Record) -> Record:
    for shard in range(len(record.collection.shards)):
        record = record.placed(shard, SERVERS[shard % 2], 1)
    return record


def open_views(records: list[Record]) -> Iterator[tuple[Any, ShardView]]:
    for record in records:
        for shard, placement in enumerate(record.collection.shards):
            yield record.collection.ref(shard), ShardView(placement.server, 1, 1, ShardPhase.OPEN)


@pytest.fixture
async def loop(tmp_path: Path) -> Reconciler:
    """A controller of a collection with 3 shards, and the next generation with 4, all open."""
    wish = check_wish(
        Wish(name="a", encoder="none", dim=4, shards=3),
        Bounds(max_dim=8, max_shards=8, default_shards=2),
    )
    source = placed(new_record(settle(wish, None), b"u" * 16))
    target = placed(next_record(source, source.settings, 4, trains=False))
    store = Store(open_storage(str(tmp_path)).catalog)
    await store.load()
    for record in (source, target):
        await store.create(record)
    launcher = ProcessLauncher(str(tmp_path))
    made = Reconciler(ControllerSettings(), store, launcher, cast(Calls, Servers()))
    for name in SERVERS:
        running = Process(name, Role.SERVER, Phase.RUNNING, 1)
        made.fleet.tracked[name] = Tracked(replace(running, address=name))
    made.shards = dict(open_views([source, target]))
    return made


async def test_a_server_that_dies_at_the_flip_leaves_no_other_shard_closed(
    loop: Reconciler, tmp_path: Path
) -> None:
    servers = cast(Servers, loop.calls)
    generations = Generations(loop, open_storage(str(tmp_path)))
    source, target = GenerationShards(loop, "a"), GenerationShards(loop, "a.2")
    with pytest.raises(ClusterUnreachable):
        await generations._flip(source, target, Copier(source, target))
    assert servers.down
    for shards in (source, target):
        record = shards.record.collection
        alive = [n for n, each in enumerate(record.shards) if each.server == "server-0"]
        assert {servers.writers[record.generation, number] for number in alive} == {
            WRITERS[record.phase]
        }
