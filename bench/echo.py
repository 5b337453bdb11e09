"""No-op unary gRPC servers: the floors that Shoal's router is compared with.

The same server class, method and event loop as a router's, in a process of its
own. An echo reads a request and answers with a constant of the size of a real
answer. A relay asks other no-op servers first, one call to each per request: the
hops of a search, without the search and without rounds.

Example:
    python -m bench.echo --reply-bytes 330
    python -m bench.echo --reply-bytes 330 --ask 127.0.0.1:40001 --ask 127.0.0.1:40002
"""

import argparse
import asyncio
from typing import Any

import grpc
import uvloop

from shoal.rpc.router.v1 import router_pb2
from shoal.settings import Limits
from shoal.wire.channels import channel_options
from shoal.wire.server import Context, GrpcServer, RawHandler

SERVICE = router_pb2.DESCRIPTOR.services_by_name["SearchService"]
SEARCH = f"/{SERVICE.full_name}/Search"
TIMEOUT_S = 10.0


async def serve(reply: bytes, asked: list[str]) -> None:
    """Prints "host:port" and answers every call with `reply` until it is ended."""
    options = channel_options(Limits().max_message_bytes)
    calls: list[Any] = [
        grpc.aio.insecure_channel(address, options=options).unary_unary(SEARCH) for address in asked
    ]

    async def answer(request: bytes, context: Context) -> bytes:
        if calls:
            await asyncio.gather(*(call(request, timeout=TIMEOUT_S) for call in calls))
        return reply

    handlers: dict[str, RawHandler] = {
        method.name: answer for method in SERVICE.methods if not method.server_streaming
    }
    server = GrpcServer(Limits().max_message_bytes)
    server.add(SERVICE, _NothingElse(), handlers)
    print(await server.start("127.0.0.1", 0), flush=True)
    await server.set_serving(True)
    await server.wait()


class _NothingElse:
    """Stands for the streams, which nobody calls here."""

    async def Ingest(self, requests: object, context: Context) -> None:  # noqa: N802
        """Never called."""
        raise NotImplementedError


def main() -> None:
    """Runs until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reply-bytes", type=int, required=True)
    parser.add_argument("--ask", action="append", default=[], metavar="HOST:PORT")
    arguments = parser.parse_args()
    uvloop.run(serve(bytes(arguments.reply_bytes), arguments.ask))


if __name__ == "__main__":
    main()
