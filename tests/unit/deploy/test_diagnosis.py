"""What `shoal doctor` says of measured facts."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from deploy.cli import app
from deploy.core.diagnosis import (
    GIB,
    EncoderFacts,
    Finding,
    Machine,
    Verdict,
    cluster_findings,
    machine_findings,
    model_finding,
    worst,
)
from shoal.client.model import (
    ClusterStatus,
    CollectionInfo,
    GenerationInfo,
    ProcessInfo,
    ShardInfo,
)

SOUND = Machine(
    python=(3, 12),
    packages={"numpy": ("2.4.6", "<3,>=1.26", True)},
    kernels="compiled, avx512",
    memory_bytes=8 * GIB,
    shared_bytes=4 * GIB,
    disk_bytes=100 * GIB,
    fsync_s=0.001,
    handles=65_536,
    torch="2.13.0 on cpu",
    ray=("2.60.0", "2.60.0"),
    clock_synchronised=True,
    clock_skew_s=0.0,
)
SHARD = ShardInfo(0, "server-0", "serving", 5, 5, 0, 5, 100, 1.0, ("pq8",), "", "")
COLLECTION = CollectionInfo(
    name="papers",
    uuid="ab",
    kind="colbert",
    similarity="cosine",
    dim=96,
    encoder="none",
    fingerprint="",
    index="auto",
    chunk_tokens=0,
    chunk_overlap=0,
    generation=1,
    documents=5,
    shards=(SHARD,),
    codec="ab" * 32,
)
SERVER = ProcessInfo("server-0", "server", "127.0.0.1:1", "serving", 7, 0, "")


def status(*collections: CollectionInfo, process: ProcessInfo = SERVER) -> ClusterStatus:
    return ClusterStatus(
        processes=(process,),
        collections=collections,
        topology_version=3,
        limits={},
        version="0.1.0",
        controller_reachable=True,
    )


def verdict(findings: list[Finding], check: str) -> tuple[Verdict, str]:
    return next((each.verdict, each.fix) for each in findings if each.check == check)


def test_nothing_is_to_be_done_where_all_is_sound() -> None:
    findings = [*machine_findings(SOUND), *cluster_findings(status(COLLECTION), "0.1.0", [])]
    assert worst(findings) is Verdict.OK
    assert not any(each.fix for each in findings)


@pytest.mark.parametrize(
    ("change", "check", "expected"),
    [
        ({"python": (3, 10)}, "python", Verdict.FAIL),
        ({"packages": {"ray": ("", ">=2", False)}}, "packages", Verdict.FAIL),
        ({"packages": {"ray": ("1.0", ">=2", False)}}, "packages", Verdict.WARN),
        ({"kernels": ""}, "kernels", Verdict.WARN),
        ({"memory_bytes": GIB}, "memory", Verdict.WARN),
        ({"memory_bytes": GIB // 4}, "memory", Verdict.FAIL),
        ({"shared_bytes": 64 << 20}, "shared memory", Verdict.WARN),
        ({"disk_bytes": GIB // 2}, "disk", Verdict.FAIL),
        ({"fsync_s": 0.1}, "fsync", Verdict.WARN),
        ({"fsync_s": None}, "fsync", Verdict.FAIL),
        ({"handles": 1_024}, "file handles", Verdict.WARN),
        ({"handles": 256}, "file handles", Verdict.FAIL),
        ({"torch": ""}, "torch", Verdict.FAIL),
        ({"ray": ("", "")}, "ray", Verdict.WARN),
        ({"ray": ("2.60.0", "2.59.0")}, "ray", Verdict.FAIL),
        ({"clock_synchronised": False}, "clock", Verdict.WARN),
        ({"clock_skew_s": -3.0}, "clock", Verdict.WARN),
    ],
)
def test_a_machine_that_lacks_something(
    change: dict[str, object], check: str, expected: Verdict
) -> None:
    findings = machine_findings(replace(SOUND, **change))  # type: ignore[arg-type]
    found, fix = verdict(findings, check)
    assert found is expected
    assert fix
    assert worst(findings) is expected


@pytest.mark.parametrize(
    ("shard", "collection", "expected"),
    [
        ({"state": "corrupt", "loss": "x"}, {}, Verdict.FAIL),
        ({"state": "opening"}, {}, Verdict.FAIL),
        ({"new_tokens": 100, "far_tokens": 41}, {}, Verdict.WARN),
        ({"new_tokens": 100, "far_tokens": 30}, {}, Verdict.OK),
        (
            {},
            {"generations": (GenerationInfo(2, "given up", 0, 0, 1, "none", "auto", "no text"),)},
            Verdict.WARN,
        ),
        (
            {},
            {"generations": (GenerationInfo(2, "copying", 1, 5, 1, "none", "auto", "no server"),)},
            Verdict.WARN,
        ),
        (
            {},
            {"generations": (GenerationInfo(2, "copying", 1, 5, 1, "none", "auto", ""),)},
            Verdict.OK,
        ),
    ],
)
def test_a_collection(
    shard: dict[str, object], collection: dict[str, object], expected: Verdict
) -> None:
    shards = (replace(SHARD, **shard),)  # type: ignore[arg-type]
    made = replace(COLLECTION, shards=shards, **collection)  # type: ignore[arg-type]
    found, fix = verdict(cluster_findings(status(made), "0.1.0", []), "collection papers")
    assert found is expected
    assert bool(fix) == (expected is not Verdict.OK)


def test_a_cluster() -> None:
    dead = replace(SERVER, state="dead")
    assert (
        verdict(cluster_findings(status(process=dead), "0.1.0", []), "processes")[0] is Verdict.FAIL
    )
    again = replace(SERVER, restarts=2)
    assert (
        verdict(cluster_findings(status(process=again), "0.1.0", []), "processes")[0]
        is Verdict.WARN
    )
    assert verdict(cluster_findings(status(), "0.2.0", []), "version")[0] is Verdict.WARN
    alone = replace(status(), controller_reachable=False)
    assert verdict(cluster_findings(alone, "0.1.0", []), "controller")[0] is Verdict.FAIL


def test_encoders() -> None:
    encoded = replace(COLLECTION, encoder="minilm", fingerprint="a" * 64)
    same, other = ("minilm", "a" * 64), ("minilm", "b" * 64)

    def checked(check: str, *encoders: EncoderFacts) -> Verdict:
        return verdict(cluster_findings(status(encoded), "0.1.0", encoders), check)[0]

    assert checked("encoders", EncoderFacts("encoder-0", (same,))) is Verdict.OK
    assert checked("encoders", EncoderFacts("encoder-0", None)) is Verdict.FAIL
    assert checked("encoders") is Verdict.WARN
    assert checked("fingerprints", EncoderFacts("encoder-0", (same,))) is Verdict.OK
    assert checked("fingerprints", EncoderFacts("encoder-0", (other,))) is Verdict.FAIL
    assert checked("fingerprints", EncoderFacts("encoder-0", (("x", "c"), same))) is Verdict.OK


def test_models() -> None:
    assert model_finding({}).verdict is Verdict.OK
    missing = model_finding({"hub/id@1": "not cached"})
    assert (missing.verdict, missing.seen) == (Verdict.WARN, "hub/id@1: not cached")


@given(st.lists(st.tuples(st.integers(0, 1000), st.booleans()), min_size=1))
def test_coverage_fails_exactly_where_a_document_is_not_served(
    shards: list[tuple[int, bool]],
) -> None:
    made = replace(
        COLLECTION,
        documents=sum(documents for documents, _ in shards),
        shards=tuple(
            replace(SHARD, documents=documents, state="serving" if serves else "unreachable")
            for documents, serves in shards
        ),
    )
    found, fix = verdict(cluster_findings(status(made), "0.1.0", []), "coverage")
    away = any(documents and not serves for documents, serves in shards)
    assert found is (Verdict.FAIL if away else Verdict.OK)
    assert bool(fix) == away


@given(st.lists(st.sampled_from(list(Verdict))))
def test_the_worst_decides(verdicts: list[Verdict]) -> None:
    found = worst([Finding("x", each, "") for each in verdicts])
    assert found is (
        Verdict.FAIL
        if Verdict.FAIL in verdicts
        else Verdict.WARN
        if Verdict.WARN in verdicts
        else Verdict.OK
    )


def test_the_command_checks_this_machine() -> None:
    shown = CliRunner().invoke(app, ["doctor", "--machine-only", "--json"])
    assert '"check": "kernels"' in shown.output
    alone = CliRunner().invoke(app, ["doctor", "--machine-only"])
    assert "fsync" in alone.output
    assert "cluster" not in alone.output
