"""Messages of kind colbert to domain values and back, checked on receipt."""

from __future__ import annotations

import numpy as np

from shard_service.core.late import Explained, LateQuery
from shard_service.shard import Shard
from shard_service.spec import ShardSpec
from shoal.errors import InvalidRequest, MalformedMessage
from shoal.kernels.fixed import Fixed, longest_square, squares
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.shard.v1 import shard_pb2
from shoal.settings import Limits
from shoal.wire.arrays import check_limit, matrix_from_message, matrix_to_message


def late_queries(request: shard_pb2.SearchRequest, spec: ShardSpec) -> list[LateQuery]:
    """The queries as sent.

    Raises:
        MalformedMessage: columns of different lengths, rows that are none in fixed point,
            or longer than 1.
        InvalidRequest: centroids to be probed where there are none.
    """
    rows = _fixed_rows(request.queries, spec)
    count, counts = len(request.top_k), list(request.row_counts)
    probes, refined = list(request.probes), list(request.refined)
    if len(counts) != count or sum(counts) != len(rows) or min(counts, default=1) < 1:
        raise MalformedMessage("row_counts must give every query 1 row or more of queries")
    if {len(probes), len(refined)} not in ({0}, {count}):
        raise MalformedMessage("probes and refined must be as long as top_k, or empty")
    if any(refined) and not spec.codec:
        raise InvalidRequest("vectors in fixed point have no centroids", field="refined")
    if any(wanted and not probe for wanted, probe in zip(refined, probes, strict=True)):
        raise InvalidRequest("a query that refines probes 1 centroid or more", field="probes")
    tokens = np.split(rows, np.cumsum(counts)[:-1]) if counts else []
    return [
        LateQuery(np.ascontiguousarray(mine), top_k, *effort)
        for mine, top_k, effort in zip(
            tokens,
            request.top_k,
            zip(probes or [0] * count, refined or [0] * count, strict=True),
            strict=True,
        )
    ]


def _fixed_rows(message: common_pb2.Matrix, spec: ShardSpec) -> Fixed:
    rows = matrix_from_message(message)
    if rows.dtype != np.int16 or (len(rows) and rows.shape[1] != spec.dim):
        raise MalformedMessage(f"queries are I16 with {spec.dim} columns")
    if len(rows) and squares(rows).max() > longest_square(spec.dim):
        raise MalformedMessage("a query token is longer than 1")
    return rows


def score(shard: Shard, request: shard_pb2.ScoreRequest, limits: Limits) -> shard_pb2.ScoreResponse:
    """Answers a Score message.

    Raises:
        MalformedMessage: the query is none.
        InvalidRequest: centroids to be probed where there are none.
        LimitExceeded: too many ids.
        NotSupported: the shard is of kind single.
    """
    check_limit("max_ids", len(request.ids), limits.max_ids)
    rows = _fixed_rows(request.query, shard.spec)
    if not len(rows):
        raise MalformedMessage("a query has 1 row or more")
    if request.probes and not shard.spec.codec:
        raise InvalidRequest("vectors in fixed point have no centroids", field="probes")
    query = LateQuery(rows, 1, request.probes)
    found, unit, position = shard.explain([key.encode() for key in request.ids], query)
    return shard_pb2.ScoreResponse(
        documents=[
            shard_pb2.ScoredDocument()
            if each is None
            else _scored(*each, unit, request.want_matches)
            for each in found
        ],
        unit=unit,
        position=position,
    )


def _scored(
    sequence: int, explained: Explained, unit: float, want_matches: bool
) -> shard_pb2.ScoredDocument:
    return shard_pb2.ScoredDocument(
        found=True,
        score=explained.score * unit,
        centroid_score=explained.centroid_score * unit,
        passage=explained.passage,
        sequence=sequence,
        passage_tokens=explained.tokens,
        tokens_before=explained.tokens_before,
        matched=explained.matched.tolist() if want_matches else (),
        similarities=explained.similarities.tolist() if want_matches else (),
    )


def sample(
    shard: Shard, request: shard_pb2.SampleRequest, limits: Limits
) -> shard_pb2.SampleResponse:
    """Answers a Sample message.

    Raises:
        InvalidRequest: max_rows is 0.
        LimitExceeded: a document alone is too large for one message.
        NotSupported: the shard is of kind single.
    """
    if not request.max_rows:
        raise InvalidRequest("max_rows is 1 or more", field="max_rows")
    documents, last = shard.sample(request.after_id.encode(), request.max_rows)
    response = shard_pb2.SampleResponse(
        documents=[
            shard_pb2.SampledDocument(
                id=each.content.document.id,
                title=each.content.document.title,
                text=each.content.document.text,
                tokens=each.count,
            )
            for each in documents
        ],
        last=last,
    )
    if not shard.spec.codec and documents:
        rows = np.concatenate([each.tokens[0] for each in documents])
        response.vectors.CopyFrom(matrix_to_message(rows))
    check_limit("max_message_bytes", response.ByteSize(), limits.max_message_bytes)
    return response
