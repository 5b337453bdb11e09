"""Metrics of a real cluster: the pages, `shoal top`."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from deploy.core.reading import Page
from deploy.scraping import read_pages
from shoal.errors import CollectionNotFound
from tests.cluster.clusters import Cluster, cluster, run_shoal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DOCUMENTS = [
    {"id": f"d{number}", "text": f"Document {number} is about the number {number}."}
    for number in range(24)
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that has stored, answered, and refused something."""
    with (
        cluster(tmp_path_factory.mktemp("observed"), "--no-ray") as made,
        made.connect() as client,
    ):
        client.create_collection("texts")
        client.ingest("texts", DOCUMENTS)
        client.search("texts", "what is about seven")
        client.optimize("texts")
        with suppress(CollectionNotFound):
            client.search("absent", "nothing")
        yield made


@pytest.fixture(scope="module")
def pages(running: Cluster) -> Mapping[str, Page]:
    with running.connect() as client:
        return read_pages(client.status().processes)


def test_every_process_but_the_controller_shows_its_metrics(
    running: Cluster, pages: Mapping[str, Page]
) -> None:
    assert sorted(pages) == ["encoder-0", "router-0", "server-0", "server-1"]
    written = sum(
        value
        for page in pages.values()
        for (name, _), value in page.items()
        if name == "shoal_shard_documents_written_total"
    )
    assert written == len(DOCUMENTS)
    with running.connect() as client:
        addresses = {each.name: each.metrics_address for each in client.status().processes}
    assert addresses.pop("controller") == ""
    assert all(address.startswith("127.0.0.1:") for address in addresses.values())


def test_top_tells_the_load_of_its_interval(running: Cluster) -> None:
    with running.connect() as client, ThreadPoolExecutor(1) as threads:
        command = ("top", "--once", "--json", "--interval", "4", "--target", running.target)
        shown = threads.submit(run_shoal, *command)
        while not shown.done():
            client.search("texts", "what is about seven")
    assert shown.result().returncode == 0, shown.result().stderr
    reading = json.loads(shown.result().stdout)
    assert reading["seconds"] >= 4.0
    assert reading["queries_per_s"]["ok"] > 1.0
    assert reading["cache_hit_share"] == 1.0
    total = reading["stages"]["total"]
    assert 0.0 < total["p50_ms"] <= total["p99_ms"]
    assert {"fan_out", "merge", "queue", "total"} <= reading["stages"].keys()
    assert reading["shard_search"]["per_s"] > 1.0
    assert {each["name"]: each["measured"] for each in reading["processes"]} == {
        **dict.fromkeys(("encoder-0", "router-0", "server-0", "server-1"), True),
        "controller": False,
    }
    assert sum(shard["documents"] for shard in reading["shards"]) == len(DOCUMENTS)
    assert all(shard["position"] for shard in reading["shards"])
    assert [lane["lane"] for lane in reading["encoders"]] == ["query", "document"]


def test_top_for_a_terminal(running: Cluster) -> None:
    shown = run_shoal("top", "--once", "--interval", "0.1", "--target", running.target)
    assert shown.returncode == 0, shown.stderr
    assert "queries/s" in shown.stdout
    assert "server-1" in shown.stdout
    refused = run_shoal("top", "--json", "--target", running.target)
    assert refused.returncode == 2
    assert "--once" in refused.stderr
