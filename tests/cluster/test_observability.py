"""Metrics of a real cluster: the pages, `shoal top`, dashboard and alert rules."""

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.core.reading import Page
from deploy.scraping import read_page, read_pages
from shoal.errors import CollectionNotFound
from tests.cluster.clusters import SHOAL, Cluster, cluster, run_shoal
from tests.cluster.promql import Series, faults, parse

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
OBSERVABILITY = ROOT / "deploy" / "observability"
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


def test_the_live_view_goes_on_until_it_is_interrupted(running: Cluster) -> None:
    ours, theirs = pty.openpty()
    command = (SHOAL, "top", "--interval", "0.2", "--target", running.target)
    with subprocess.Popen(command, stdout=theirs, env=os.environ | {"COLUMNS": "120"}) as top:
        os.close(theirs)
        shown = ""
        while shown.count("queries/s") < 3:
            shown += os.read(ours, 65536).decode(errors="replace")
        top.send_signal(signal.SIGINT)
        with suppress(OSError):  # how Linux says that the other side is closed
            while os.read(ours, 65536):
                continue
    os.close(ours)
    assert top.returncode == 0
    assert "encoder-0" in shown


# --- the dashboard and the alert rules ------------------------------------------------


@pytest.fixture(scope="module")
def series(running: Cluster) -> list[Series]:
    """Every sample as Prometheus keeps it: with the labels that the scrape adds."""
    shown = run_shoal("status", "--prometheus", "--target", running.target)
    found: list[Series] = []
    for target in json.loads(shown.stdout):
        [address] = target["targets"]
        added = {"job": "shoal", "instance": address, **target["labels"]}
        page = read_page(address)
        assert page is not None
        found.append(("up", added))
        found += [(name, added | dict(labels)) for name, labels in page]
    return found


def dashboard() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((OBSERVABILITY / "dashboard.json").read_text())
    return read


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((OBSERVABILITY / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]] + [
        rule["expr"] for rule in rules()
    ]


def test_every_expression_names_what_a_scrape_has(series: list[Series]) -> None:
    assert len(expressions()) > 50
    assert {text: found for text in expressions() if (found := faults(text, series))} == {}


def test_every_metric_is_on_the_dashboard_or_alerted_on(pages: Mapping[str, Page]) -> None:
    scraped = {name for page in pages.values() for name, _ in page if name.startswith("shoal_")}
    named = {selector.name for text in expressions() for selector in parse(text).selectors}
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in named}
    bare = {re.sub("_(bucket|sum|count|total|created)$", "", name) for name in scraped}
    assert bare - {name.removesuffix("_total") for name in families} == set()


def test_a_wrong_expression_is_found_out(series: list[Series]) -> None:
    """The check above can fail."""
    for wrong, why in {
        "rate(shoal_router_querys_total[5m])": "no metric",
        'rate(shoal_router_queries_total{outcome="nice"}[5m])': "nothing matches",
        'rate(shoal_router_queries_total{result="ok"}[5m])': "no label",
        "sum by (shard) (rate(shoal_router_queries_total[5m]))": "the label shard",
    }.items():
        assert any(why in each for each in faults(wrong, series)), wrong
    with pytest.raises(ValueError, match="balance"):
        parse("sum(rate(x[5m])")
    with pytest.raises(ValueError, match="no known function"):
        parse("average(x)")


def test_encoders_stand_apart_on_the_dashboard() -> None:
    section, of = "", {}
    for panel in dashboard()["panels"]:
        if panel["type"] == "row":
            section = panel["title"]
            continue
        names = {s.name for target in panel["targets"] for s in parse(target["expr"]).selectors}
        of[panel["title"]] = section
        assert any(name.startswith("shoal_encoder_") for name in names) == (section == "Encoders")
    assert {"Model run", "Wait for the model", "Texts that wait", "Texts of a batch"} <= {
        title for title, own in of.items() if own == "Encoders"
    }


def test_panels_are_explained_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["description"], panel["title"]
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in panels())
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(ids)) == len(ids)


def test_legends_and_summaries_name_labels_that_are_there() -> None:
    added = {"job", "instance", "process", "role"}
    named = [
        (target["expr"], re.findall(r"{{(\w+)}}", target["legendFormat"]))
        for panel in panels()
        for target in panel["targets"]
    ] + [
        (rule["expr"], re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        for rule in rules()
    ]
    for text, labels in named:
        expression = parse(text)
        aggregated = re.search(r"\b(sum|max|min)\b", text)
        assert set(labels) <= (expression.grouping if aggregated else added), text


def test_every_alert_is_explained() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    names = [rule["alert"] for rule in rules()]
    explained = re.findall(r"^\| `(Shoal\w+)` \|", page, re.M)
    assert explained == names, "one row for each, in the order of alerts.yaml"
    for rule in rules():
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"]


def test_prometheus_reads_the_rules_and_every_target() -> None:
    settings = yaml.safe_load((OBSERVABILITY / "prometheus.yaml").read_text())
    assert all((OBSERVABILITY / name).exists() for name in settings["rule_files"])
    assert [each["job_name"] for each in settings["scrape_configs"]] == ["shoal"]
