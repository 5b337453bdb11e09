"""The documents of final hits, from the shards that own them."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from router import metrics
from router.lanes import Answer, shard_key
from router.requests import Plan
from router.shards import ShardCall, ShardCalls
from shoal.errors import ShoalError
from shoal.kernels import Merged
from shoal.rpc.router.v1 import router_pb2
from shoal.rpc.shard.v1 import shard_pb2


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A hit's document: which version, and which passage's span."""

    shard: int
    id: bytes
    sequence: int
    passage: int


@dataclass(frozen=True, slots=True)
class Completed:
    """A question's hits with their documents.

    Attributes:
        hits: best first.
        missing: shards that did not take part, those that could not be
            fetched from included.
        superseded: hits dropped because their document had changed.
    """

    hits: list[router_pb2.Hit]
    missing: Mapping[int, ShoalError]
    superseded: int


class Fetcher:
    """Completes answers with the fields asked for.

    Args:
        shards: calls to owners.
    """

    def __init__(self, shards: ShardCalls) -> None:
        self._shards = shards

    async def complete(self, plan: Plan, answers: Sequence[Answer]) -> list[Completed]:
        """Fetches the hits' documents, one message per owner for all answers.

        An owner that cannot be reached counts as missing: the hits are then
        merged again from the other shards.
        """
        fetched: dict[_Wanted, shard_pb2.FetchedDocument] = {}
        unreachable: dict[int, ShoalError] = {}
        while True:
            rankings = [self._ranking(answer, unreachable) for answer in answers]
            absent: dict[int, list[_Wanted]] = {}
            for hit in dict.fromkeys(each for ranking, _ in rankings for each in ranking):
                if hit not in fetched:
                    absent.setdefault(hit.shard, []).append(hit)
            if not absent:
                break
            results = await asyncio.gather(
                *(self._fetch(plan, shard, wanted) for shard, wanted in absent.items())
            )
            for (shard, wanted), result in zip(absent.items(), results, strict=True):
                if isinstance(result, ShoalError):
                    unreachable[shard] = result
                else:
                    fetched.update(zip(wanted, result, strict=True))
        return [
            self._completed(answer, ranking, scores, fetched, unreachable)
            for answer, (ranking, scores) in zip(answers, rankings, strict=True)
        ]

    def _ranking(
        self, answer: Answer, unreachable: Mapping[int, ShoalError]
    ) -> tuple[list[_Wanted], list[float]]:
        if unreachable:
            return _rows(answer.group.without(answer.row, unreachable), 0)
        return _rows(answer.group.merged, answer.row)

    async def _fetch(
        self, plan: Plan, shard: int, wanted: Sequence[_Wanted]
    ) -> Sequence[shard_pb2.FetchedDocument] | ShoalError:
        request = shard_pb2.FetchRequest(
            request_id=plan.request_id,
            key=shard_key(plan.collection, shard),
            ids=[each.id.decode() for each in wanted],
            sequences=[each.sequence for each in wanted],
            passages=[each.passage for each in wanted],
            fields=plan.fields,
        )
        call = ShardCall(plan.collection, shard, "Fetch", request, any_replica=True)
        try:
            response = await self._shards.call(call, plan.clock.deadline_ns)
        except ShoalError as error:
            return error
        documents: Sequence[shard_pb2.FetchedDocument] = response.documents
        return documents

    def _completed(
        self,
        answer: Answer,
        ranking: Sequence[_Wanted],
        scores: Sequence[float],
        fetched: Mapping[_Wanted, shard_pb2.FetchedDocument],
        unreachable: Mapping[int, ShoalError],
    ) -> Completed:
        hits = [
            _hit(wanted, score, fetched[wanted])
            for wanted, score in zip(ranking, scores, strict=True)
            if fetched[wanted].found
        ]
        superseded = len(ranking) - len(hits)
        if superseded:
            metrics.superseded.inc(superseded)
        missing = {**unreachable, **answer.missing} if unreachable else answer.missing
        return Completed(hits, missing, superseded)


def _rows(merged: Merged, row: int) -> tuple[list[_Wanted], list[float]]:
    begin, end = int(merged.offsets[row]), int(merged.offsets[row + 1])
    wanted = [
        _Wanted(*each)
        for each in zip(
            merged.numbers[begin:end].tolist(),
            merged.ids(row),
            merged.hits.sequences[begin:end].tolist(),
            merged.hits.passages[begin:end].tolist(),
            strict=True,
        )
    ]
    return wanted, merged.hits.scores[begin:end].tolist()


def _hit(wanted: _Wanted, score: float, fetched: shard_pb2.FetchedDocument) -> router_pb2.Hit:
    document = fetched.document
    return router_pb2.Hit(
        id=wanted.id.decode(),
        score=score,
        title=document.title,
        text=document.text,
        payload=document.payload,
        chunk=fetched.span if fetched.HasField("span") else None,
        shard=wanted.shard,
        passage=wanted.passage,
    )
