"""Explain and Rerank: given documents of late interaction, scored where they are."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from router import metrics
from router.core import superset
from router.core.coverage import shortfall
from router.core.pooling import Clusters, clusters, pooled
from router.document_encoder import DocumentEncoder
from router.encoding import Encoded, QueryEncoder
from router.lanes import Answer, shard_key
from router.requests import Plan, RequestChecker, find_collection
from router.search import SearchHandlers, coverage_message
from router.shards import ShardCall, ShardCalls
from router.tasks import all_of
from router.topology import TopologyFollower
from shoal.errors import InvalidRequest, NotSupported
from shoal.ids import check_id, shard_of
from shoal.kernels.fixed import ONE
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.encoder.v1 import encoder_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.rpc.shard.v1 import shard_pb2
from shoal.types import Kind
from shoal.wire.arrays import check_limit, matrix_from_message
from shoal.wire.server import Context

_HIT, _BY_CENTROIDS, _BY_SCORE, _NOT_FOUND = (
    router_pb2.OUTCOME_HIT,
    router_pb2.OUTCOME_DROPPED_BY_CENTROIDS,
    router_pb2.OUTCOME_DROPPED_BY_SCORE,
    router_pb2.OUTCOME_NOT_FOUND,
)
_TEXTS = (shard_pb2.FIELD_TITLE, shard_pb2.FIELD_TEXT, shard_pb2.FIELD_PAYLOAD)


@dataclass(frozen=True, slots=True)
class _Scored:
    """A document as its shard scored and stores it."""

    score: shard_pb2.ScoredDocument
    fetched: shard_pb2.FetchedDocument
    shard: int


@dataclass(frozen=True, slots=True)
class _Passage:
    """A passage encoded again.

    Attributes:
        tokens: [tokens, dim] float32.
        labels: which token each is.
        members: [tokens] int64, the vector to which each was pooled.
    """

    tokens: NDArray[np.float32]
    labels: Sequence[encoder_pb2.TokenLabel]
    members: Clusters

    def vectors(self) -> NDArray[np.float32]:
        """[vectors, dim] float32, as they are stored but for rounding."""
        return pooled(self.tokens, self.members)

    def nearest(self, vector: int, query: NDArray[np.float64]) -> encoder_pb2.TokenLabel:
        """Of the tokens that were pooled to a vector, the one most like a query's token."""
        mine = np.flatnonzero(self.members == vector)
        return self.labels[int(mine[(self.tokens[mine] @ query).argmax()])]


@dataclass(frozen=True, slots=True)
class _Ranking:
    """What a search found: ranks by id, and what it cut at.

    Attributes:
        ranks: of the hits, from 1.
        last: score of the last hit, where as many were found as asked for.
        counted: centroid score and id of the last document whose codes were looked at.
    """

    ranks: Mapping[bytes, int]
    last: float | None
    counted: tuple[float, bytes] | None


class LateHandlers:
    """What collections of kind colbert have besides searching.

    Args:
        follower: the topology.
        checker: of requests.
        search: of the same router.
        queries: the encoder of questions.
        documents: the encoder of documents.
        shards: calls to owners.
    """

    def __init__(
        self,
        *,
        follower: TopologyFollower,
        checker: RequestChecker,
        search: SearchHandlers,
        queries: QueryEncoder,
        documents: DocumentEncoder,
        shards: ShardCalls,
    ) -> None:
        self._follower, self._checker, self._search = follower, checker, search
        self._queries, self._documents, self._shards = queries, documents, shards

    # --- explaining -------------------------------------------------------

    async def explain(
        self, request: router_pb2.ExplainRequest, context: Context
    ) -> router_pb2.ExplainResponse:
        """Handles `SearchService.Explain`."""
        with metrics.counted("explain"):
            plan = self._plan(request, context)
            check_limit("max_explained", len(request.ids), self._checker.limits.max_explained)
            question = await self._search.question(request.query, plan)
            plan, answers = await self._search.ask(plan, [question.vector])
            coverage = answers[0].group.coverage(answers[0].missing)
            failure = shortfall(coverage, plan.min_coverage, answers[0].missing)
            if failure is not None:
                raise failure
            ranking = _ranking(plan, answers[0])
            hits = [key.decode() for key in ranking.ranks]
            ids = list(request.ids) or hits[: self._checker.limits.max_explained]
            scored, unit = await self._score(plan, question, ids, want_matches=True)
            matches = await self._matches(plan, question, [scored[key] for key in ids], unit)
            return router_pb2.ExplainResponse(
                tokens=await self._tokens(plan, request.query),
                explanations=[
                    _explanation(plan, key, scored[key], ranking, mine)
                    for key, mine in zip(ids, matches, strict=True)
                ],
                unit=unit,
                fingerprint=plan.collection.fingerprint,
                generation=plan.collection.generation,
                truncated=question.truncated,
                request_id=plan.request_id,
                coverage=coverage_message(coverage),
            )

    def _plan(
        self, request: router_pb2.ExplainRequest | router_pb2.RerankRequest, context: Context
    ) -> Plan:
        collection = find_collection(self._follower.current, request.collection)
        if collection.kind is not Kind.COLBERT:
            raise NotSupported("only collections of kind colbert say which tokens matched")
        return self._checker.plan(request, collection, self._checker.clock(context))

    async def _tokens(self, plan: Plan, query: router_pb2.Query) -> list[router_pb2.ExplainedToken]:
        if query.WhichOneof("input") != "text":
            return []
        labels = await self._queries.labels(plan.collection, query.text, plan.clock.left_s())
        return [_token(label) for label in labels]

    async def _score(
        self, plan: Plan, question: Encoded, ids: Sequence[str], *, want_matches: bool
    ) -> tuple[dict[str, _Scored], float]:
        """Every document with its score, by id, and what 1 in a similarity is worth."""
        owned: dict[int, list[str]] = {}
        for key in dict.fromkeys(ids):
            owner = shard_of(check_id(key), plan.collection.shard_count)
            owned.setdefault(owner, []).append(key)
        query = common_pb2.Matrix(
            element_type=common_pb2.ELEMENT_TYPE_I16,
            rows=len(question.vector) // (2 * plan.collection.dim),
            columns=plan.collection.dim,
            data=question.vector,
        )

        async def one(shard: int, mine: list[str]) -> tuple[dict[str, _Scored], float]:
            request = shard_pb2.ScoreRequest(
                request_id=plan.request_id,
                key=shard_key(plan.collection, shard),
                query=query,
                ids=mine,
                probes=plan.effort(question.vector).probes if want_matches else 0,
                want_matches=want_matches,
            )
            call = ShardCall(plan.collection, shard, "Score", request, any_replica=True)
            reply = await self._shards.call(call, plan.clock.deadline_ns)
            documents = await self._fetch(plan, shard, mine, reply.documents)
            scored = zip(mine, reply.documents, documents, strict=True)
            return {key: _Scored(score, document, shard) for key, score, document in scored}, (
                reply.unit
            )

        replies = await all_of(one(shard, mine) for shard, mine in owned.items())
        everything = {key: each for found, _ in replies for key, each in found.items()}
        return everything, next((unit for _, unit in replies), 1.0)

    async def _fetch(
        self,
        plan: Plan,
        shard: int,
        ids: Sequence[str],
        scores: Sequence[shard_pb2.ScoredDocument],
    ) -> Sequence[shard_pb2.FetchedDocument]:
        request = shard_pb2.FetchRequest(
            request_id=plan.request_id,
            key=shard_key(plan.collection, shard),
            ids=ids,
            sequences=[score.sequence for score in scores],
            passages=[score.passage for score in scores],
            fields=_TEXTS,
        )
        call = ShardCall(plan.collection, shard, "Fetch", request, any_replica=True)
        response = await self._shards.call(call, plan.clock.deadline_ns)
        documents: Sequence[shard_pb2.FetchedDocument] = response.documents
        return documents

    async def _matches(
        self, plan: Plan, question: Encoded, scored: Sequence[_Scored], unit: float
    ) -> list[list[router_pb2.TokenMatch]]:
        """Per document, what each token of the question matched."""
        encoded = await self._encoded_again(plan, scored)
        query = np.frombuffer(question.vector, "<i2").reshape(-1, plan.collection.dim) / ONE
        return [
            _token_matches(each.score, unit, query, encoded.get(place))
            for place, each in enumerate(scored)
        ]

    async def _encoded_again(self, plan: Plan, scored: Sequence[_Scored]) -> dict[int, _Passage]:
        """The best passage's vectors and labels of documents that were encoded, by place."""
        places = [place for place, each in enumerate(scored) if each.fetched.HasField("span")]
        if not places or not plan.collection.fingerprint:
            return {}
        reply = await self._documents.reply(
            plan.collection,
            [scored[place].fetched.document for place in places],
            plan.request_id,
            plan.clock.left_s(),
            want_labels=True,
        )
        every = await asyncio.to_thread(_passages, reply, plan.collection.pool_factor)
        found: dict[int, _Passage] = {}
        for place, passages in zip(places, every, strict=True):
            score = scored[place].score
            counts = [int(each.members.max(initial=-1)) + 1 for each in passages]
            before, mine = counts[: score.passage], counts[score.passage : score.passage + 1]
            # A document that was written meanwhile has other passages.
            if (sum(before), mine) == (score.tokens_before, [score.passage_tokens]):
                found[place] = passages[score.passage]
        return found

    # --- ordering ---------------------------------------------------------

    async def rerank(
        self, request: router_pb2.RerankRequest, context: Context
    ) -> router_pb2.RerankResponse:
        """Handles `SearchService.Rerank`."""
        with metrics.counted("rerank"):
            plan = self._plan(request, context)
            if not request.ids:
                raise InvalidRequest("there are no ids to be ordered", field="ids")
            check_limit("max_ids", len(request.ids), self._checker.limits.max_ids)
            question = await self._search.question(request.query, plan)
            scored, _ = await self._score(plan, question, request.ids, want_matches=False)
            found = [(key, each) for key, each in scored.items() if each.score.found]
            found.sort(key=lambda pair: (-pair[1].score.score, pair[0].encode()))
            wanted = request.options.top_k or len(found)
            return router_pb2.RerankResponse(
                hits=[_hit(plan, each) for _, each in found[:wanted]],
                not_found=[key for key, each in scored.items() if not each.score.found],
                fingerprint=plan.collection.fingerprint,
                generation=plan.collection.generation,
                truncated=question.truncated,
                request_id=plan.request_id,
            )


def _passages(reply: encoder_pb2.EncodeDocumentsResponse, pool_factor: int) -> list[list[_Passage]]:
    """Per document of a reply its passages."""
    vectors = matrix_from_message(reply.vectors)
    starts = np.concatenate([[0], np.cumsum(reply.row_counts)]).astype(int).tolist()
    passages = [
        _Passage(
            vectors[begin:end], reply.labels[begin:end], clusters(vectors[begin:end], pool_factor)
        )
        for begin, end in pairwise(starts)
    ]
    ends = np.cumsum(reply.passage_counts).tolist()
    return [
        passages[end - count : end] for end, count in zip(ends, reply.passage_counts, strict=True)
    ]


def _ranking(plan: Plan, answer: Answer) -> _Ranking:
    merged, row = answer.group.merged, answer.row
    begin, end = int(merged.offsets[row]), int(merged.offsets[row + 1])
    ids = merged.ids(row)
    counted = None
    if refined := answer.group.refined[row]:
        counted = superset.last_counted(answer.group.parts, row, refined)
    full = len(ids) == plan.top_k
    return _Ranking(
        ranks={key: rank for rank, key in enumerate(ids, 1)},
        last=float(merged.hits.scores[end - 1]) if full and end > begin else None,
        counted=counted,
    )


def _explanation(
    plan: Plan,
    key: str,
    scored: _Scored,
    ranking: _Ranking,
    matches: Sequence[router_pb2.TokenMatch],
) -> router_pb2.Explanation:
    score = scored.score
    if not score.found:
        return router_pb2.Explanation(id=key, outcome=_NOT_FOUND)
    rank = ranking.ranks.get(key.encode(), 0)
    outcome = _HIT if rank else _BY_SCORE
    if not rank and ranking.counted is not None:
        cut, last = ranking.counted
        if (-score.centroid_score, key.encode()) > (-cut, last):
            outcome = _BY_CENTROIDS
    fetched = scored.fetched
    return router_pb2.Explanation(
        id=key,
        outcome=outcome,
        score=score.score,
        rank=rank,
        score_cut=ranking.last or 0.0,
        centroid_score=score.centroid_score,
        centroid_cut=ranking.counted[0] if ranking.counted else 0.0,
        passage=score.passage,
        chunk=fetched.span if fetched.HasField("span") else None,
        document=_parts(plan, fetched.document),
        matches=matches,
    )


def _parts(plan: Plan, document: common_pb2.Document) -> common_pb2.Document:
    """The parts asked for."""
    wanted = set(plan.fields)
    return common_pb2.Document(
        id=document.id,
        title=document.title if shard_pb2.FIELD_TITLE in wanted else "",
        text=document.text if shard_pb2.FIELD_TEXT in wanted else "",
        payload=document.payload if shard_pb2.FIELD_PAYLOAD in wanted else b"",
    )


def _hit(plan: Plan, scored: _Scored) -> router_pb2.Hit:
    document = _parts(plan, scored.fetched.document)
    span = scored.fetched.span if plan.fields and scored.fetched.HasField("span") else None
    return router_pb2.Hit(
        id=document.id,
        score=scored.score.score,
        title=document.title,
        text=document.text,
        payload=document.payload,
        chunk=span,
        shard=scored.shard,
        passage=scored.score.passage,
    )


def _token_matches(
    score: shard_pb2.ScoredDocument,
    unit: float,
    query: NDArray[np.float64],
    encoded: _Passage | None,
) -> list[router_pb2.TokenMatch]:
    found = []
    vectors = np.empty(0) if encoded is None else encoded.vectors()
    for place, (token, units) in enumerate(zip(score.matched, score.similarities, strict=True)):
        match = router_pb2.TokenMatch(document_token=token, units=units, similarity=units * unit)
        if encoded is not None:
            exact = query[place] @ vectors[token].astype(np.float64)
            match.exact_similarity = float(exact)
            match.token.CopyFrom(_token(encoded.nearest(token, query[place])))
        found.append(match)
    return found


def _token(label: encoder_pb2.TokenLabel) -> router_pb2.ExplainedToken:
    return router_pb2.ExplainedToken(
        token=label.token,
        origin=router_pb2.TokenOrigin.ValueType(label.origin),
        start=label.start,
        end=label.end,
    )
