"""Readers of corpora, queries and judgements."""

import gzip
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.commands.beir import (
    STDIN,
    BadLine,
    CorpusReader,
    read_qrels,
    read_queries,
    read_questions,
)
from shoal.errors import InvalidRequest


def lines_of(*documents: object) -> bytes:
    return b"".join(json.dumps(document).encode() + b"\n" for document in documents)


def test_plain_and_gzip_and_lines_that_are_bad(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    first.write_bytes(b'{"_id":"1"}\n\nnot json\n{"_id":"2"}\n[3]\n\xff\xfe\n{"_id":"4"}')
    second.write_bytes(gzip.compress(lines_of({"_id": "5"}, {"_id": "6"})))
    bad: list[BadLine] = []
    reader = CorpusReader([first, second], bad.append)
    assert reader.bytes_total == first.stat().st_size + second.stat().st_size
    assert [document["_id"] for document in reader] == ["1", "2", "4", "5", "6"]
    assert [(item.file, item.line) for item in bad] == [(str(first), n) for n in (3, 5, 6)]
    assert [reader.origin(number) for number in range(5)] == [
        *((str(first), line) for line in (1, 4, 7)),
        *((str(second), line) for line in (1, 2)),
    ]
    assert reader.documents == 5
    assert reader.bytes_read == reader.bytes_total


@given(st.lists(st.sampled_from([b'{"_id":"a"}', b"", b"bad", b"[1]", b'"text"']), max_size=30))
def test_every_document_has_its_line(lines: list[bytes]) -> None:
    bad: list[BadLine] = []
    reader = CorpusReader([STDIN], bad.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\n".join(lines))))
        count = len(list(reader))
    good = [number for number, line in enumerate(lines, 1) if line.startswith(b"{")]
    assert [reader.origin(number).line for number in range(count)] == good
    assert [item.line for item in bad] == [
        n for n, line in enumerate(lines, 1) if line[:1] in b'b["' and line
    ]


def test_deep_json_is_a_bad_line(tmp_path: Path) -> None:
    file = tmp_path / "deep.jsonl"
    file.write_bytes(b"[" * 100_000 + b"\n" + b'{"_id":"1"}')
    bad: list[BadLine] = []
    assert len(list(CorpusReader([file], bad.append))) == 1
    assert [item.line for item in bad] == [1]


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"no gzip"])
def test_damaged_gzip_is_an_error(tmp_path: Path, damage) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(damage(gzip.compress(lines_of(*({"_id": str(n)} for n in range(500))))))
    with pytest.raises(InvalidRequest, match="damaged"):
        list(CorpusReader([file], lambda bad: None))


def test_stdin_has_no_size() -> None:
    assert CorpusReader([STDIN], lambda bad: None).bytes_total is None


def test_queries(tmp_path: Path) -> None:
    file = tmp_path / "queries.jsonl"
    file.write_bytes(lines_of({"_id": "q1", "text": "one"}, {"_id": 2, "text": "two", "x": 1}))
    assert read_queries(file) == {"q1": "one", "2": "two"}
    for wrong in (b"nonsense\n", b'{"_id": "q"}\n', b"[1]\n"):
        file.write_bytes(lines_of({"_id": "q", "text": "t"}) + wrong)
        with pytest.raises(InvalidRequest, match=r"queries\.jsonl:2"):
            read_queries(file)


def test_qrels(tmp_path: Path) -> None:
    file = tmp_path / "test.tsv"
    file.write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\r\nq2\td1\t1\n")
    assert read_qrels(file) == {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": 1}}
    file.write_text("query-id\tcorpus-id\tscore\nq1 d1 2\n")
    with pytest.raises(InvalidRequest, match=r"test\.tsv:2"):
        read_qrels(file)


def test_questions_are_queries_or_lines(tmp_path: Path) -> None:
    file = tmp_path / "given"
    file.write_text('\n{"_id": "a", "text": "one"}\n{"_id": "b", "text": "two"}\n')
    assert read_questions(file) == ["one", "two"]
    file.write_text("one\n\n  two {braces}\n")
    assert read_questions(file) == ["one", "two {braces}"]
    packed = tmp_path / "given.gz"
    packed.write_bytes(gzip.compress(b"one\n"))
    assert read_questions(packed) == ["one"]
    for bad in (b"", b"\n \n", b"\xff\xfe\n", b'{"_id": "a"}\n'):
        file.write_bytes(bad)
        with pytest.raises(InvalidRequest):
            read_questions(file)
