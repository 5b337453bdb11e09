"""Late interaction on words, through a real cluster with a real encoder."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import shoal
from shoal.client.model import CollectionInfo
from shoal.errors import EmptyText, InvalidRequest, LimitExceeded, NotSupported
from tests.cluster.clusters import Cluster, cluster, run_shoal, wait_for

pytestmark = pytest.mark.slow

LONG = " ".join(f"Sentence {n} is about rivers and the fish in them." for n in range(120))
DOCUMENTS = [
    {"id": "vitamin", "title": "Vitamin D", "text": "Vitamin D helps against infections."},
    {"id": "rocket", "title": "", "text": "A rocket burns fuel to leave the ground."},
    {"id": "long", "title": "Rivers", "text": f"{LONG} Vitamin C is found in lemons."},
    {"id": "marks", "title": "", "text": "?! ... ;"},
    *({"id": f"d{n}", "text": f"Filler number {n} about stones and sand."} for n in range(20)),
]
QUESTION = "does vitamin D protect against infections?"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("words")
    with cluster(folder, "--no-ray", "--shards", "2") as made:
        with made.connect() as client:
            client.create_collection("notes", "colbert")
            report = client.ingest("notes", DOCUMENTS)
            assert (report.stored, report.rejected) == (len(DOCUMENTS), ())
        yield made


def test_words_find_what_they_mean_and_where(running: Cluster) -> None:
    with running.connect() as client:
        answer = client.search("notes", QUESTION, top_k=3)
        assert answer[0].id == "vitamin"
        lemons = client.search("notes", "which fruit has vitamin C", top_k=1)[0]
        assert lemons.id == "long"
        assert "lemons" in lemons.chunk_text
        assert lemons.passage > 0
        batch = client.search_batch("notes", [QUESTION, "rocket fuel"], top_k=1)
        assert [each[0].id for each in batch if isinstance(each, shoal.Answer)] == [
            "vitamin",
            "rocket",
        ]


def test_shares_add_up_to_the_score_and_name_the_words(running: Cluster) -> None:
    with running.connect() as client:
        answer = client.search("notes", QUESTION, top_k=4)
        why = client.explain("notes", QUESTION, top_k=4)
        assert [(each.id, each.score) for each in why.explanations] == [
            (hit.id, hit.score) for hit in answer
        ]
        assert [token.token for token in why.tokens][1:4] == ["does", "vitamin", "d"]
        for each in why.explanations:
            assert sum(match.similarity for match in each.matches) == each.score
            for match in each.matches:
                assert match.error is not None
                assert abs(match.error) < 1e-3
        best = dict(zip((t.token for t in why.tokens), why.explanations[0].matches, strict=True))
        matched = best["infections"].token
        assert matched is not None
        assert (matched.token, matched.origin) == ("infections", "text")
        start, end = matched.span
        assert DOCUMENTS[0]["text"][start:end] == "infections"


def test_pooled_tokens_are_fewer_and_still_say_which_word_matched(running: Cluster) -> None:
    with running.connect() as client:
        client.create_collection("pooled", "colbert", pool_factor=2)
        client.ingest("pooled", DOCUMENTS)
        kept, whole = (
            sum(shard.tokens for shard in info.shards)
            for info in wait_for(lambda: described(client))
        )
        assert 0.45 < kept / whole < 0.6
        assert client.search("pooled", QUESTION, top_k=1)[0].id == "vitamin"
        why = client.explain("pooled", QUESTION, ids=["vitamin", "long"])
        for each in why.explanations:
            assert sum(match.similarity for match in each.matches) == each.score
            assert all(abs(match.error or 0.0) < 1e-3 for match in each.matches)
        best = dict(zip((t.token for t in why.tokens), why.explanations[0].matches, strict=True))
        matched = best["infections"].token
        assert matched is not None
        assert matched.token == "infections"


def described(client: shoal.Client) -> tuple[CollectionInfo, CollectionInfo] | None:
    found = {each.name: each for each in client.status().collections}
    done = all(
        sum(shard.documents for shard in found[name].shards) == len(DOCUMENTS)
        for name in ("pooled", "notes")
    )
    return (found["pooled"], found["notes"]) if done else None


def test_why_not(running: Cluster) -> None:
    with running.connect() as client:
        why = client.explain("notes", QUESTION, top_k=2, ids=["rocket", "nobody", "vitamin"])
        rocket, nobody, vitamin = why.explanations
        assert (rocket.outcome, rocket.rank) == ("dropped_by_score", 0)
        assert rocket.score < rocket.score_cut
        assert nobody.outcome == "not_found"
        assert (vitamin.outcome, vitamin.rank) == ("hit", 1)
        with pytest.raises(LimitExceeded, match="max_explained"):
            client.explain("notes", QUESTION, ids=["a"] * 101)


def test_given_documents_are_ordered_by_their_scores(running: Cluster) -> None:
    with running.connect() as client:
        everything = client.search("notes", QUESTION, top_k=100)
        ids = [each["id"] for each in DOCUMENTS]
        ordered = client.rerank("notes", QUESTION, ids=[*ids[::-1], "nobody", ids[0]])
        assert [(h.id, h.score, h.passage) for h in ordered.hits] == [
            (h.id, h.score, h.passage) for h in everything
        ]
        assert ordered.not_found == ("nobody",)
        assert [h.id for h in client.rerank("notes", QUESTION, ids=ids, top_k=1).hits] == [
            "vitamin"
        ]
        with pytest.raises(InvalidRequest):
            client.rerank("notes", QUESTION, ids=[])


def test_questions_that_cannot_be(running: Cluster) -> None:
    with running.connect() as client:
        assert len(client.search("notes", "?! ...", top_k=5)) == 5
        with pytest.raises(EmptyText):
            client.search("notes", "  ")
        with pytest.raises(InvalidRequest, match="effort"):
            client.search("notes", QUESTION, effort="heroic")
        client.create_collection("one", encoder="none", dim=3)
        with pytest.raises(NotSupported):
            client.explain("one", vector=[1.0, 2.0, 3.0])
        with pytest.raises(InvalidRequest, match="colbert"):
            client.search("one", vector=[1.0, 2.0, 3.0], effort="low")


def test_the_doctor_sees_machine_and_cluster(running: Cluster) -> None:
    shown = run_shoal("doctor", "--data", str(running.data), "--target", running.target, "--json")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    found = {each["check"]: each for each in json.loads(shown.stdout)["checks"]}
    assert found["processes"]["verdict"] == "ok"
    assert found["collection notes"]["verdict"] == "ok"
    for check in ("router", "encoders", "fingerprints", "coverage", "models"):
        assert found[check]["verdict"] == "ok"
    nobody = run_shoal("doctor", "--target", "127.0.0.1:1", "--json")
    assert '"check": "router", "verdict": "warn"' in nobody.stdout


def test_the_command_explains(running: Cluster, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    target = ("--target", running.target)
    shown = run_shoal(
        "search", "notes", QUESTION, "-k", "2", "--explain", "--explain-html", str(page), *target
    )
    assert shown.returncode == 0, shown.stderr
    assert "infections" in shown.stdout
    assert "rank 1" in shown.stdout
    assert "<mark" in page.read_text()
    told = run_shoal("explain", "notes", QUESTION, "rocket", "--json", *target)
    (rocket,) = json.loads(told.stdout)["explanations"]
    assert sum(match["similarity"] for match in rocket["matches"]) == rocket["score"]
