"""Measures and latencies of `shoal eval`, against the textbook formulas."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.commands.evaluate import (
    Evaluation,
    evaluation_json,
    evaluation_text,
    judged_questions,
    measured,
    percentile,
    spread,
)
from shoal.client.model import Answer, Hit
from shoal.errors import InvalidRequest
from shoal.types import Coverage


def answer_of(*ids: str) -> Answer:
    # Equal scores: the order of the hits alone must count.
    return Answer(tuple(Hit(item, 0.5) for item in ids), Coverage(1, 1, 1, 1))


def ndcg_at_10(ranked: list[str], judged: dict[str, int]) -> float:
    gained = sum(judged.get(item, 0) / math.log2(rank + 2) for rank, item in enumerate(ranked[:10]))
    ideal = sorted(judged.values(), reverse=True)[:10]
    best = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(ideal))
    return gained / best


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_measures_equal_the_formulas(data: st.DataObject) -> None:
    documents = [f"d{n}" for n in range(130)]
    judgements, answers = {}, {}
    for query_id in ("q1", "q2", "q3"):
        judgements[query_id] = data.draw(
            st.dictionaries(st.sampled_from(documents), st.integers(1, 2), min_size=1, max_size=12)
        )
        ranked = data.draw(st.permutations(documents))[: data.draw(st.sampled_from([0, 5, 100]))]
        answers[query_id] = answer_of(*ranked)
    found = measured(answers, judgements)
    orders = {query_id: [hit.id for hit in answer] for query_id, answer in answers.items()}
    first = {
        query_id: next(
            (n for n, item in enumerate(order[:10], 1) if item in judgements[query_id]), 0
        )
        for query_id, order in orders.items()
    }
    expected = {
        "ndcg@10": [ndcg_at_10(order, judgements[key]) for key, order in orders.items()],
        "mrr@10": [1 / rank if rank else 0.0 for rank in first.values()],
        "recall@100": [
            len(set(order[:100]) & set(judgements[key])) / len(judgements[key])
            for key, order in orders.items()
        ],
    }
    assert found == pytest.approx({key: sum(each) / 3 for key, each in expected.items()})


def test_percentiles() -> None:
    values = [float(n) for n in range(1, 101)]
    assert percentile(values, 0.5) == 50.0
    assert percentile(values, 0.99) == 99.0
    assert percentile([7.0], 0.99) == 7.0


@given(st.integers(1, 400), st.integers(1, 150))
def test_lone_queries_are_spread(count: int, wanted: int) -> None:
    ids = [str(n) for n in range(count)]
    lone, others = spread(ids, wanted)
    assert len(lone) == min(count, wanted)
    assert sorted([*lone, *others], key=int) == ids


def test_only_judged_queries_are_asked() -> None:
    texts = {"a": "one", "b": "two", "c": "three"}
    judged = judged_questions(texts, {"c": {"d": 1}, "a": {"d": 1}}, Path("q.jsonl"))
    assert judged == {"c": "three", "a": "one"}
    for judgements in ({}, {"z": {"d": 1}}):
        with pytest.raises(InvalidRequest):
            judged_questions(texts, judgements, Path("q.jsonl"))


def test_shapes() -> None:
    measures = {"ndcg@10": 0.5, "mrr@10": 0.25, "recall@100": 1.0}
    found = Evaluation(measures, 3, [1.0, 2.0, 9.0], 0.0, 1)
    shape = evaluation_json(found)
    assert list(shape) == ["ndcg@10", "mrr@10", "recall@100", "queries", "latency_ms"]
    assert (shape["latency_ms"]["p50"], shape["latency_ms"]["p99"]) == (2.0, 9.0)
    text = evaluation_text(found)
    assert "ndcg@10     0.5000" in text
    assert "1 queries were cut" in text
