"""Reply messages to the client's values."""

import dataclasses
import json

from shoal.client.explained import ExplainedAnswer, Explanation, Match, Reranked, Token
from shoal.client.model import (
    Answer,
    ClusterStatus,
    CollectionInfo,
    EffortInfo,
    GenerationInfo,
    Hit,
    Payload,
    ProcessInfo,
    ShardInfo,
    Span,
    StoredDocument,
    Timings,
)
from shoal.errors import ShoalError
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.settings import Limits
from shoal.types import Coverage, MissingShard
from shoal.wire.errors import from_status

_KINDS = {
    common_pb2.COLLECTION_KIND_SINGLE: "single",
    common_pb2.COLLECTION_KIND_COLBERT: "colbert",
}
_SIMILARITIES = {
    common_pb2.SIMILARITY_COSINE: "cosine",
    common_pb2.SIMILARITY_DOT: "dot",
    common_pb2.SIMILARITY_L2: "l2",
}
_OUTCOMES = {
    router_pb2.OUTCOME_HIT: "hit",
    router_pb2.OUTCOME_DROPPED_BY_CENTROIDS: "dropped_by_centroids",
    router_pb2.OUTCOME_DROPPED_BY_SCORE: "dropped_by_score",
    router_pb2.OUTCOME_NOT_FOUND: "not_found",
}
_ORIGINS = {
    router_pb2.TOKEN_ORIGIN_ADDED: "added",
    router_pb2.TOKEN_ORIGIN_TITLE: "title",
    router_pb2.TOKEN_ORIGIN_TEXT: "text",
}
_LIMIT_NAMES = {field.name for field in dataclasses.fields(Limits)}


def answer(response: router_pb2.SearchResponse) -> Answer:
    """The answer to one question."""
    return Answer(
        hits=tuple(map(_hit, response.hits)),
        coverage=coverage(response.coverage),
        fingerprint=response.fingerprint,
        timings=_timings(response.timings),
        generation=response.generation,
        position=response.position,
        truncated=response.truncated,
        superseded=response.superseded,
        request_id=response.request_id,
    )


def explained(response: router_pb2.ExplainResponse) -> ExplainedAnswer:
    """Why documents match."""
    return ExplainedAnswer(
        tokens=tuple(map(_token, response.tokens)),
        explanations=tuple(map(_explanation, response.explanations)),
        coverage=coverage(response.coverage),
        fingerprint=response.fingerprint,
        generation=response.generation,
        truncated=response.truncated,
        request_id=response.request_id,
    )


def _explanation(message: router_pb2.Explanation) -> Explanation:
    document = message.document
    return Explanation(
        id=message.id,
        outcome=_OUTCOMES.get(message.outcome, "unknown"),
        score=message.score,
        rank=message.rank,
        score_cut=message.score_cut,
        centroid_score=message.centroid_score,
        centroid_cut=message.centroid_cut,
        passage=message.passage,
        chunk=Span(message.chunk.start, message.chunk.end) if message.HasField("chunk") else None,
        title=document.title,
        text=document.text,
        payload=payload(document.payload),
        matches=tuple(
            Match(
                document_token=match.document_token,
                token=_token(match.token) if match.HasField("token") else None,
                similarity=match.similarity,
                exact_similarity=(
                    match.exact_similarity if match.HasField("exact_similarity") else None
                ),
            )
            for match in message.matches
        ),
    )


def _token(message: router_pb2.ExplainedToken) -> Token:
    return Token(message.token, _ORIGINS.get(message.origin, ""), Span(message.start, message.end))


def reranked(response: router_pb2.RerankResponse) -> Reranked:
    """Given documents by score."""
    return Reranked(
        hits=tuple(map(_hit, response.hits)),
        not_found=tuple(response.not_found),
        fingerprint=response.fingerprint,
        generation=response.generation,
        truncated=response.truncated,
        request_id=response.request_id,
    )


def batch_answers(response: router_pb2.SearchBatchResponse) -> list[Answer | ShoalError]:
    """Per question its answer or its error."""
    timings = _timings(response.timings)
    return [
        from_status(item.status)
        or Answer(
            hits=tuple(map(_hit, item.hits)),
            coverage=coverage(item.coverage),
            fingerprint=response.fingerprint,
            timings=timings,
            generation=response.generation,
            position=item.position,
            truncated=item.truncated,
            superseded=item.superseded,
            request_id=response.request_id,
        )
        for item in response.answers
    ]


def coverage(message: common_pb2.Coverage) -> Coverage:
    """How much of the collection answered."""
    return Coverage(
        documents_total=message.documents_total,
        documents_covered=message.documents_covered,
        shards_total=message.shards_total,
        shards_answered=message.shards_answered,
        missing=tuple(MissingShard(item.shard, item.reason) for item in message.missing),
    )


def payload(data: bytes) -> Payload:
    """The payload's JSON object; empty for no bytes."""
    if not data:
        return {}
    loaded: Payload = json.loads(data)
    return loaded


def stored_document(result: router_pb2.GetResult) -> StoredDocument | None:
    """The document, or None when there is none."""
    if not result.found:
        return None
    document = result.document
    return StoredDocument(document.id, document.title, document.text, payload(document.payload))


def collection_info(message: router_pb2.CollectionInfo) -> CollectionInfo:
    """A collection and its shards."""
    settings = message.settings
    return CollectionInfo(
        name=settings.name,
        uuid=settings.uuid.hex(),
        kind=_KINDS.get(settings.kind, "unknown"),
        similarity=_SIMILARITIES.get(settings.similarity, "unknown"),
        dim=settings.dim,
        encoder=settings.encoder,
        fingerprint=settings.fingerprint,
        index=settings.index,
        chunk_tokens=settings.chunk_tokens,
        chunk_overlap=settings.chunk_overlap,
        generation=message.generation,
        documents=message.documents,
        shards=tuple(map(_shard_info, message.shards)),
        code_bytes=settings.late.code_bytes,
        codec=settings.late.codec,
        pool_factor=settings.late.pool_factor,
        efforts=tuple(
            EffortInfo(each.name, each.probes, each.refined, each.recall)
            for each in settings.late.efforts
        ),
        generations=tuple(
            GenerationInfo(
                generation=each.generation,
                phase=each.phase,
                documents=each.documents,
                documents_total=each.documents_total,
                shards=each.shards,
                encoder=each.settings.encoder,
                index=each.settings.index,
                detail=each.detail,
            )
            for each in message.generations
        ),
    )


def cluster_status(response: router_pb2.GetStatusResponse) -> ClusterStatus:
    """The cluster's state."""
    return ClusterStatus(
        processes=tuple(
            ProcessInfo(
                item.name,
                item.role,
                item.address,
                item.state,
                item.pid,
                item.restarts,
                item.detail,
                item.metrics_address,
            )
            for item in response.processes
        ),
        collections=tuple(map(collection_info, response.collections)),
        topology_version=response.topology_version,
        limits=dict(response.limits),
        version=response.version,
        controller_reachable=response.controller_reachable,
        desired=dict(response.desired),
        pending=tuple(response.pending),
    )


def limits(response: router_pb2.GetStatusResponse) -> Limits:
    """The published limits; those that the cluster does not name have their defaults."""
    return Limits(
        **{name: value for name, value in response.limits.items() if name in _LIMIT_NAMES}
    )


def _hit(message: router_pb2.Hit) -> Hit:
    return Hit(
        id=message.id,
        score=message.score,
        title=message.title,
        text=message.text,
        payload=payload(message.payload),
        chunk=Span(message.chunk.start, message.chunk.end) if message.HasField("chunk") else None,
        shard=message.shard,
        passage=message.passage,
    )


def _timings(message: common_pb2.StageTimings) -> Timings:
    return Timings(
        encode_ms=message.encode_us / 1e3,
        queue_ms=message.queue_us / 1e3,
        fan_out_ms=message.fan_out_us / 1e3,
        merge_ms=message.merge_us / 1e3,
        fetch_ms=message.fetch_us / 1e3,
        total_ms=message.total_us / 1e3,
        encode_cached=message.encode_cached,
        tokens_scored=message.tokens_scored,
        exhaustive=message.exhaustive,
    )


def _shard_info(message: router_pb2.ShardInfo) -> ShardInfo:
    return ShardInfo(
        shard=message.shard,
        server=message.server,
        state=message.state,
        documents=message.documents,
        passages=message.passages,
        tail_passages=message.tail_passages,
        position=message.position,
        index_bytes=message.index_bytes,
        recall=message.recall,
        indexes=tuple(message.indexes),
        loss=message.loss,
        detail=message.detail,
        tokens=message.tokens,
        token_bytes=message.token_bytes,
        codec=message.codec,
        new_tokens=message.new_tokens,
        far_tokens=message.far_tokens,
        moving_to=message.moving_to,
    )
