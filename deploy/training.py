"""Trains the codec of a generation of kind colbert, and calibrates its searches."""

from __future__ import annotations

import asyncio
import heapq
import logging
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from deploy.copying import ENCODED, encode_documents
from deploy.core.effort import PROBES, levels, scan_from
from deploy.records import Record
from deploy.shards import GenerationShards, encoder_address
from router.topology import collection_from_message
from shard_service.codecs import write_codec
from shard_service.indexes.codec import SAMPLE_TOKENS, spaced, spacing, train
from shoal.ids import sample_rank
from shoal.kernels.fixed import ONE, Fixed, to_fixed, unit_rows
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.encoder.v1 import encoder_pb2
from shoal.rpc.shard.v1 import shard_pb2
from shoal.storage.directory import Storage
from shoal.types import Float32Matrix
from shoal.wire.arrays import matrix_from_message, matrix_to_message, split_ids

logger = logging.getLogger(__name__)

_PAGE_TOKENS = 65_536
_QUESTIONS = 128
"""Questions of a calibration."""
_QUESTION_WORDS = 4
"""A sentence of fewer words is no question."""
_OWN_TOKENS = 8
"""Tokens of a document that make half a question where there is no text."""
_ENCODE_TIMEOUT_S = 120.0
_BEST = 10
_DEEPEST = 4_096
"""Documents by centroid score among which the best ones are looked for."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """A document of a sample, with its vectors as [tokens, dim] int16 in fixed point."""

    id: str
    title: str
    text: str
    rows: Fixed


async def sampled(shards: GenerationShards) -> AsyncIterator[Sampled]:
    """A generation's documents in the order of (sample rank, id), whatever its shards."""
    streams = [_of_shard(shards, number) for number in range(shards.count)]
    waiting: list[tuple[tuple[int, bytes], int, Sampled]] = []
    for number, stream in enumerate(streams):
        first = await anext(stream, None)
        if first is not None:
            heapq.heappush(waiting, (_place(first), number, first))
    while waiting:
        _, number, document = heapq.heappop(waiting)
        yield document
        following = await anext(streams[number], None)
        if following is not None:
            heapq.heappush(waiting, (_place(following), number, following))


def _place(document: Sampled) -> tuple[int, bytes]:
    key = document.id.encode()
    return sample_rank(key), key


async def _of_shard(shards: GenerationShards, number: int) -> AsyncIterator[Sampled]:
    after, last = "", False
    while not last:
        request = shard_pb2.SampleRequest(after_id=after, max_rows=_PAGE_TOKENS)
        page = await shards.call(number, "Sample", request)
        rows = matrix_from_message(page.vectors) if page.vectors.rows else np.empty((0, 1), "<i2")
        at = 0
        for document in page.documents:
            mine = rows[at : at + document.tokens]
            yield Sampled(document.id, document.title, document.text, mine)
            at += document.tokens
        last = page.last
        after = page.documents[-1].id if page.documents else after


async def train_codec(shards: GenerationShards, target: Record, storage: Storage) -> str:
    """Trains a codec on a generation's sample and stores it; gives its name.

    The same documents and vectors give the same codec, in whatever order they came and
    over however many shards they lie.

    Args:
        shards: of the generation that serves.
        target: the one that is to have the codec.
        storage: where it is kept.

    Raises:
        InvalidRequest: there are neither vectors nor texts to train on.
    """
    code_bytes = target.settings.late.code_bytes
    every = await _spacing(shards)
    parts: list[Fixed] = []
    seen = 0
    async for rows in _rows(shards, target):
        parts.append(spaced(rows, seen, every))
        seen += len(rows)
        if seen >= every * SAMPLE_TOKENS:
            break
    sample: Float32Matrix = (np.concatenate(parts) / ONE).astype(np.float32)
    started = time.monotonic()
    codec = await asyncio.to_thread(train, sample, code_bytes)
    uuid = shards.record.collection.uuid
    await asyncio.to_thread(write_codec, codec, uuid, storage)
    logger.info(
        "event=codec_trained collection=%s tokens=%d code_bytes=%d codec=%s seconds=%.1f",
        shards.record.settings.name,
        len(sample),
        code_bytes,
        codec.name,
        time.monotonic() - started,
    )
    return codec.name


async def _spacing(shards: GenerationShards) -> int:
    return spacing(sum(status.tokens for status in await shards.statuses()))


async def _rows(shards: GenerationShards, target: Record) -> AsyncIterator[Fixed]:
    """Vectors of the sample's documents, encoded anew where they are not kept."""
    current = shards.record.settings
    if target.settings.fingerprint == current.fingerprint and not current.late.codec:
        async for document in sampled(shards):
            yield document.rows
        return
    waiting: list[Sampled] = []
    async for document in sampled(shards):
        waiting.append(document)
        if len(waiting) == ENCODED:
            yield await _encoded_documents(shards, target, waiting)
            waiting = []
    if waiting:
        yield await _encoded_documents(shards, target, waiting)


async def _encoded_documents(
    shards: GenerationShards, target: Record, documents: Sequence[Sampled]
) -> Fixed:
    texts = [common_pb2.Document(id=d.id, title=d.title, text=d.text) for d in documents]
    found = await encode_documents(shards.loop, target, texts)
    return to_fixed(np.concatenate([encoded.vectors for encoded in found]))


async def calibrate(
    source: GenerationShards, target: GenerationShards, late: common_pb2.LateInteraction
) -> None:
    """Sets the efforts of a quantised generation that holds the documents of another one.

    Questions are sentences of documents behind the sample that trained the codec, encoded
    as questions; where there is no text, tokens of two documents each.

    Args:
        source: the generation that serves.
        target: the one that was built.
        late: what to set them in.
    """
    started = time.monotonic()
    questions = await _questions(source, target)
    statuses = await target.statuses()
    documents = sum(status.documents for status in statuses)
    tokens = sum(status.tokens for status in statuses)
    code_bytes = target.record.settings.late.code_bytes
    found = [await _ranks(target, question, documents) for question in questions]
    ranks = {probes: [each[place] for each in found] for place, probes in enumerate(PROBES)}
    logger.info(
        "event=calibrated collection=%s questions=%d seconds=%.1f",
        target.record.settings.name,
        len(questions),
        time.monotonic() - started,
    )
    del late.efforts[:]
    late.efforts.extend(
        common_pb2.Effort(
            name=each.name, probes=each.probes, refined=each.refined, recall=each.recall
        )
        for each in levels(ranks, documents, tokens, code_bytes)
    )
    lengths = sorted(len(question) for question in questions)
    late.question_tokens = lengths[len(lengths) // 2] if lengths else 0
    late.scan_from = scan_from(documents, tokens, code_bytes)


async def _questions(source: GenerationShards, target: GenerationShards) -> list[Fixed]:
    """At most `_QUESTIONS` questions, from held-out documents first."""
    read = SAMPLE_TOKENS * await _spacing(source)
    seen = 0
    texts: list[str] = []
    rows: list[Fixed] = []
    early: list[Sampled] = []
    async for document in sampled(source):
        seen += len(document.rows)
        if seen <= read:
            early = [*early, document][-_QUESTIONS:]
            continue
        _add(document, texts, rows)
        if max(len(texts), len(rows)) >= _QUESTIONS:
            break
    for document in reversed(early):
        # A small collection is all sample: its last documents ask.
        if max(len(texts), len(rows)) < _QUESTIONS:
            _add(document, texts, rows)
    if target.record.settings.fingerprint:
        return await _encoded(target, texts) if texts else []
    return _pairs(rows)


def _add(document: Sampled, texts: list[str], rows: list[Fixed]) -> None:
    sentences = [
        each
        for each in re.split(r"(?<=[.!?])\s+", document.text)
        if each.count(" ") >= _QUESTION_WORDS
    ]
    if sentences:
        texts.append(sentences[len(sentences) // 2])
    if len(document.rows):
        middle = document.rows[len(document.rows) // 3 :][:_OWN_TOKENS]
        rows.append(to_fixed(unit_rows((middle / ONE).astype(np.float32))))


def _pairs(rows: Sequence[Fixed]) -> list[Fixed]:
    """Questions of the tokens of two documents each: tokens of one alone find it too easily."""
    return [np.concatenate([rows[at - 1], mine]) for at, mine in enumerate(rows)]


async def _encoded(target: GenerationShards, texts: Sequence[str]) -> list[Fixed]:
    collection = collection_from_message(target.record.to_message())
    request = encoder_pb2.EncodeQueriesRequest(
        fingerprint=collection.fingerprint,
        texts=texts,
        allow_truncation=[True] * len(texts),
        dim=collection.encoder_dim,
    )
    address = encoder_address(target.loop.fleet, collection.fingerprint)
    reply = await target.loop.calls.encoder(address, "EncodeQueries", request, _ENCODE_TIMEOUT_S)
    vectors = matrix_from_message(reply.vectors)
    parts = np.split(vectors, np.cumsum(reply.row_counts)[:-1])
    return [to_fixed(unit_rows(part)) for part in parts if len(part)]


async def _ranks(target: GenerationShards, question: Fixed, documents: int) -> list[list[int]]:
    """Per number of probes, the ranks by centroid score of the ten best documents by full score."""
    best = [key for _, key in sorted(await _scored(target, question))[:_BEST]]
    ranks = []
    for probes in PROBES:
        found = sorted(await _scored(target, question, probes, min(documents, _DEEPEST)))
        order = {key: rank for rank, (_, key) in enumerate(found)}
        ranks.append([order.get(key, documents) for key in best])
    return ranks


async def _scored(
    target: GenerationShards, question: Fixed, probes: int = 0, refined: int = 0
) -> list[tuple[float, bytes]]:
    """Negative scores, by centroids where it refines, and ids of what the shards find."""

    async def of_shard(shard: int) -> list[tuple[float, bytes]]:
        request = shard_pb2.SearchRequest(
            queries=matrix_to_message(question),
            row_counts=[len(question)],
            top_k=[_BEST],
            time_left_us=[60_000_000],
            probes=[probes],
            refined=[refined],
        )
        reply = await target.call(shard, "Search", request)
        ids = split_ids(reply.ids, np.frombuffer(reply.id_lengths, "<u4"))
        scores = np.frombuffer(reply.centroid_scores if refined else reply.scores, "<f8")
        return list(zip((-scores).tolist(), ids, strict=True))

    found = await asyncio.gather(*map(of_shard, range(target.count)))
    return list(chain.from_iterable(found))
