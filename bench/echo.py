"""A no-op unary gRPC server: the floor that Shoal's router is compared with.

The same server class, method and event loop as a router's, in a process of its
own. It reads a request and answers with a constant of the size of a real answer.

Example:
    python -m bench.echo --reply-bytes 600
"""

import argparse

import uvloop

from shoal.rpc.router.v1 import router_pb2
from shoal.settings import Limits
from shoal.wire.server import Context, GrpcServer, RawHandler

SERVICE = router_pb2.DESCRIPTOR.services_by_name["SearchService"]


async def serve(reply: bytes) -> None:
    """Prints "host:port" and answers every call with `reply` until it is ended."""

    async def answer(request: bytes, context: Context) -> bytes:
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
    uvloop.run(serve(bytes(parser.parse_args().reply_bytes)))


if __name__ == "__main__":
    main()
