"""Get and Delete: documents by id, from every shard that owns one, or an error."""

import asyncio
from collections.abc import Sequence

from google.protobuf.message import Message

from router import metrics
from router.core.admission import Admission
from router.core.position import encode_position
from router.core.topology import CollectionMap
from router.lanes import shard_key
from router.requests import Clock, RequestChecker, find_collection
from router.shards import ShardCall, ShardCalls
from router.tasks import all_of
from router.topology import TopologyFollower
from shoal.errors import LimitExceeded, StaleTopology, SupersededWriter
from shoal.ids import check_id, shard_of
from shoal.rpc.router.v1 import router_pb2
from shoal.rpc.shard.v1 import shard_pb2
from shoal.wire.arrays import check_limit
from shoal.wire.server import Context

_PAUSE_S = 0.05
_ALL_FIELDS = (shard_pb2.FIELD_TITLE, shard_pb2.FIELD_TEXT, shard_pb2.FIELD_PAYLOAD)


class DocumentHandlers:
    """Documents by id.

    Args:
        follower: the topology.
        checker: of requests.
        shards: calls to owners.
        admission: of calls.
    """

    def __init__(
        self,
        follower: TopologyFollower,
        checker: RequestChecker,
        shards: ShardCalls,
        admission: Admission,
    ) -> None:
        self._admission = admission
        self._follower = follower
        self._checker = checker
        self._shards = shards

    async def get(self, request: router_pb2.GetRequest, context: Context) -> router_pb2.GetResponse:
        """Handles `SearchService.Get`; never partial."""
        with metrics.counted("get"), self._admission.enter():
            return await self._get(request, context)

    async def _get(
        self, request: router_pb2.GetRequest, context: Context
    ) -> router_pb2.GetResponse:
        clock = self._checker.clock(context)
        request_id = self._checker.request_id(request.request_id)
        collection = find_collection(self._follower.current, request.collection)
        owned = self._by_shard(request.ids, collection)

        async def fetch(shard: int, places: Sequence[int]) -> list[shard_pb2.FetchedDocument]:
            ids = [request.ids[place] for place in places]
            return await self._fetch(collection, shard, ids, request_id, clock.deadline_ns)

        fetched = await all_of(fetch(shard, places) for shard, places in owned.items())
        results: list[router_pb2.GetResult] = [router_pb2.GetResult()] * len(request.ids)
        for places, documents in zip(owned.values(), fetched, strict=True):
            for place, each in zip(places, documents, strict=True):
                document = each.document if each.found else None
                results[place] = router_pb2.GetResult(found=each.found, document=document)
        response = router_pb2.GetResponse(results=results)
        self._check_size(response)
        return response

    async def delete(
        self, request: router_pb2.DeleteRequest, context: Context
    ) -> router_pb2.DeleteResponse:
        """Handles `SearchService.Delete`; never partial (deleting again is harmless)."""
        with metrics.counted("delete"), self._admission.enter():
            return await self._delete(request, context)

    async def _delete(
        self, request: router_pb2.DeleteRequest, context: Context
    ) -> router_pb2.DeleteResponse:
        clock = self._checker.clock(context)
        request_id = self._checker.request_id(request.request_id)
        found = [False] * len(request.ids)
        while True:
            collection = find_collection(self._follower.current, request.collection)
            try:
                positions = await self._delete_from(collection, request, request_id, clock, found)
            except (StaleTopology, SupersededWriter):
                # Another generation or server is about to serve: deleting again there is harmless.
                if clock.left_s() <= _PAUSE_S:
                    raise
            else:
                return router_pb2.DeleteResponse(
                    found=found, position=encode_position(*collection.lane, positions)
                )
            await asyncio.sleep(_PAUSE_S)
            await self._follower.refresh()

    async def _delete_from(
        self,
        collection: CollectionMap,
        request: router_pb2.DeleteRequest,
        request_id: str,
        clock: Clock,
        found: list[bool],
    ) -> list[int]:
        """Deletes from every shard; notes what was found, also where another shard fails."""
        positions = [0] * collection.shard_count

        async def delete(shard: int, places: Sequence[int]) -> None:
            message = shard_pb2.DeleteRequest(
                request_id=request_id,
                key=shard_key(collection, shard),
                ids=[request.ids[place] for place in places],
            )
            call = ShardCall(collection, shard, "Delete", message, any_replica=False)
            response = await self._shards.call(call, clock.deadline_ns)
            positions[shard] = response.position
            for place, each in zip(places, response.found, strict=True):
                found[place] |= each

        owned = self._by_shard(request.ids, collection)
        outcomes = await asyncio.gather(
            *(delete(shard, places) for shard, places in owned.items()), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return positions

    def _by_shard(self, ids: Sequence[str], collection: CollectionMap) -> dict[int, list[int]]:
        """Places in the request of the ids of each shard."""
        check_limit("max_ids", len(ids), self._checker.limits.max_ids)
        owned: dict[int, list[int]] = {}
        for place, each in enumerate(ids):
            owned.setdefault(shard_of(check_id(each), collection.shard_count), []).append(place)
        return owned

    async def _fetch(
        self,
        collection: CollectionMap,
        shard: int,
        ids: Sequence[str],
        request_id: str,
        deadline_ns: int,
    ) -> list[shard_pb2.FetchedDocument]:
        """Fetches whole documents; a reply too large for one message comes in halves."""
        request = shard_pb2.FetchRequest(
            request_id=request_id, key=shard_key(collection, shard), ids=ids, fields=_ALL_FIELDS
        )
        call = ShardCall(collection, shard, "Fetch", request, any_replica=True)
        try:
            return list((await self._shards.call(call, deadline_ns)).documents)
        except LimitExceeded:
            if len(ids) == 1:
                raise
        half = len(ids) // 2
        first = await self._fetch(collection, shard, ids[:half], request_id, deadline_ns)
        return first + await self._fetch(collection, shard, ids[half:], request_id, deadline_ns)

    def _check_size(self, response: Message) -> None:
        # The client takes this as "ask for fewer ids at a time".
        check_limit(
            "max_message_bytes", response.ByteSize(), self._checker.limits.max_message_bytes
        )
