"""Promise 3: kill -9 a shard server at any moment; what it acknowledged is served again."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest

from shoal.rpc.shard.v1 import shard_pb2
from tests.wire.shard_support import DIM, TIMEOUT_S, Peer, connected, ids_of

SERVER = """
import asyncio, sys
from shard_service.server import ShardServer
from shard_service.settings import ShardSettings

async def main():
    server = ShardServer(ShardSettings(data=sys.argv[1], seal_passages=int(sys.argv[2])))
    print(await server.start(), flush=True)
    await server.wait()

asyncio.run(main())
"""


@asynccontextmanager
async def process(data: Path, seal: int) -> AsyncIterator[tuple[Peer, asyncio.subprocess.Process]]:
    """A shard server in a process of its own, killed at the end."""
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, str(data), str(seal), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert running.stdout is not None
        line = await asyncio.wait_for(running.stdout.readline(), TIMEOUT_S)
        async with connected(line.decode().strip()) as peer:
            yield peer, running
    finally:
        # The body may have killed it already, and then it may have been reaped or not.
        with suppress(ProcessLookupError):
            running.kill()
        await running.wait()


def vector(key: str) -> np.ndarray:
    seed = int.from_bytes(key.encode(), "little") % (1 << 32)
    return np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)


async def write_for_ever(peer: Peer, batch: int, acknowledged: dict[str, str]) -> None:
    """Writes versions and deletes, noting each acknowledgement."""
    number = 0
    while True:
        ids = [f"d{(number * batch + i) % 500}" for i in range(batch)]
        await peer.write(ids, np.stack([vector(f"{key}@{number}") for key in ids]))
        acknowledged.update(dict.fromkeys(ids, f"@{number}"))
        if number % 5 == 4:
            victim = f"d{number % 500}"
            acknowledged[victim] = "unsure"
            await peer.stub.Delete(shard_pb2.DeleteRequest(key=peer.key, ids=[victim]))
            acknowledged[victim] = "deleted"
        number += 1


async def check(peer: Peer, acknowledged: dict[str, str], batch: int) -> None:
    """Every acknowledged version is the live one, or was replaced by the write under way."""
    present = {k: v for k, v in acknowledged.items() if v not in {"deleted", "unsure"}}
    last = max(int(v[1:]) for v in present.values())
    under_way = {f"d{((last + 1) * batch + i) % 500}" for i in range(batch)}
    under_way |= {key for key, value in acknowledged.items() if value == "unsure"}
    checked = sorted(set(present) - under_way)
    queries = np.stack([vector(key + present[key]) for key in checked])
    answers = await peer.search(queries, 1)
    assert ids_of(answers) == [[key] for key in checked]
    scores = np.frombuffer(answers.scores, "<f8")
    assert (scores > 1 - 1e-9).all()
    gone = [k for k, v in acknowledged.items() if v == "deleted" and k not in under_way]
    if gone:
        fetched = await peer.stub.Fetch(shard_pb2.FetchRequest(key=peer.key, ids=gone))
        assert not any(one.found for one in fetched.documents)


@pytest.mark.slow
@pytest.mark.parametrize("seal", [1 << 30, 60], ids=["mid-write", "mid-seal"])
async def test_kill_and_reopen(tmp_path: Path, seal: int) -> None:
    batch = 20
    acknowledged: dict[str, str] = {}
    for epoch in range(1, 4):
        async with process(tmp_path, seal) as (peer, running):
            status = await peer.open(epoch)
            if acknowledged:
                await check(peer, acknowledged, batch)
            acknowledged = {}
            writing = asyncio.ensure_future(write_for_ever(peer, batch, acknowledged))
            target = status.position + 700 + 97 * epoch
            while (await peer.status()).shards[0].position < target:
                assert not writing.done()
            os.kill(running.pid, signal.SIGKILL)
            with pytest.raises(grpc.aio.AioRpcError):
                await asyncio.wait_for(writing, TIMEOUT_S)
            assert len(acknowledged) > 100
    async with process(tmp_path, seal) as (peer, _):
        await peer.open(9)
        await check(peer, acknowledged, batch)
        if seal < 1 << 30:
            # A busy machine may have sealed nothing before the kill: it goes on now.
            await asyncio.wait_for(sealed(peer), TIMEOUT_S)
            await check(peer, acknowledged, batch)


async def sealed(peer: Peer) -> None:
    while not (await peer.status()).shards[0].segments:
        await asyncio.sleep(0)
