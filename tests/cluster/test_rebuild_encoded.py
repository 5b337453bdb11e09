"""Rebuilds that encode texts anew, with small seeded models: another encoder, other code bytes."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import shoal
from shoal.client.model import CollectionInfo
from tests.cluster.clusters import Cluster, cluster, wait_for
from tests.unit.encoder_service.checkpoints import WORDS, Recipe, write_checkpoint
from tests.unit.encoder_service.late_checkpoints import write_late

pytestmark = pytest.mark.slow

DOCUMENTS = 700


def documents(count: int) -> Iterator[dict[str, str]]:
    dice = random.Random(5)
    for number in range(count):
        yield {"id": f"d{number}", "text": " ".join(dice.choices(WORDS, k=90)) + "."}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path / "data", "--no-ray", "--encoders", "1", "--shards", "2") as made:
        yield made


def seen(client: shoal.Client, name: str) -> CollectionInfo:
    return next(each for each in client.status().collections if each.name == name)


def serves(client: shoal.Client, name: str, generation: int, text: str) -> bool:
    return client.search(name, text).generation == generation


def test_another_encoder_is_another_generation(running: Cluster, tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path / "first", Recipe(pooling="mean"))
    second = write_checkpoint(tmp_path / "second", Recipe(pooling="cls"))
    question = " ".join(WORDS[:4])
    with running.connect() as client:
        client.create_collection("papers", encoder=str(first), index="flat")
        client.ingest("papers", documents(60))
        before = [(hit.id, hit.score) for hit in client.search("papers", question)]
        old = seen(client, "papers")
        number = client.rebuild("papers", encoder=str(second))
        wait_for(lambda: serves(client, "papers", number, question))
        new = seen(client, "papers")
        assert (new.fingerprint != old.fingerprint, new.encoder) == (True, str(second))
        client.create_collection("fresh", encoder=str(second), index="flat")
        client.ingest("fresh", documents(60))
        assert [(hit.id, hit.score) for hit in client.search("papers", question)] == [
            (hit.id, hit.score) for hit in client.search("fresh", question)
        ]
        assert client.rollback("papers") == 1
        assert [(hit.id, hit.score) for hit in client.search("papers", question)] == before
        assert client.search("papers", question).fingerprint == old.fingerprint
        # A vector of a document's own belongs to the encoder that made it.
        client.ingest("papers", [{"id": "own", "text": "words", "vector": [1.0] * old.dim}])
        number = client.rebuild("papers", encoder=str(second))
        wait_for(lambda: any(g.phase == "given up" for g in seen(client, "papers").generations))
        assert "'own'" in seen(client, "papers").generations[-1].detail


def test_quantised_texts_are_coded_anew(running: Cluster, tmp_path: Path) -> None:
    encoder = write_late(tmp_path / "late", "pylate")
    question = " ".join(WORDS[:4])
    with running.connect() as client:
        client.create_collection("papers", "colbert", encoder=str(encoder), code_bytes=4)
        client.ingest("papers", documents(DOCUMENTS))
        exact = client.search("papers", question, effort="exhaustive")
        wait_for(lambda: serves(client, "papers", 2, question), timeout_s=120)
        first = seen(client, "papers")
        coded = client.search("papers", question, effort="exhaustive")
        number = client.rebuild("papers", code_bytes=8, shards=3)
        wait_for(lambda: serves(client, "papers", number, question), timeout_s=120)
        second = seen(client, "papers")
        assert (first.code_bytes, second.code_bytes) == (4, 8)
        assert (len(second.shards), second.codec != first.codec) == (3, True)
        assert second.documents == DOCUMENTS
        again = client.search("papers", question, effort="exhaustive")
        for answer in (exact, coded, again):
            assert len(answer) == 10
        assert client.rollback("papers") == 2
        back = client.search("papers", question, effort="exhaustive")
        assert [(hit.id, hit.score) for hit in back] == [(hit.id, hit.score) for hit in coded]
        blobs = running.data / "blobs"
        assert len(list(blobs.rglob("codec"))) == 2
        client.drop_collection("papers")
        wait_for(lambda: not any(blobs.rglob("codec")))
