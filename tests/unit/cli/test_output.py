"""What is printed: snippets, advice, exit codes, JSON."""

import json

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from deploy.commands import output
from deploy.commands.output import SNIPPET_CHARACTERS, advice, printable, snippet_of
from shoal.client.model import Answer, Hit, Span, Timings
from shoal.errors import (
    TABLE,
    ClusterUnreachable,
    CollectionNotFound,
    InsufficientCoverage,
    InvalidTopK,
)
from shoal.types import Coverage, MissingShard

WORDS = st.lists(st.sampled_from(["vitamin", "reef", "tide"]), max_size=3, unique=True)


@given(
    st.text(max_size=600)
    | st.lists(st.sampled_from(["vitamin", "reef", "of", "the"]), max_size=200).map(" ".join),
    WORDS,
)
def test_snippets_are_parts_of_the_text(text: str, words: list[str]) -> None:
    snippet = snippet_of(text, words)
    body = snippet.removeprefix("… ").removesuffix(" …")
    assert body in printable(text)
    assert len(body) <= SNIPPET_CHARACTERS
    assert snippet.isprintable()


def test_snippets_show_the_words_of_the_question() -> None:
    text = "filler " * 100 + "the vitamin keeps the reef healthy " + "filler " * 100
    snippet = snippet_of(text, ["reef", "vitamin"])
    assert "vitamin keeps the reef" in snippet
    assert snippet.startswith("… ")
    assert snippet.endswith(" …")
    assert snippet_of("short text", ["nothing"]) == "short text"


def test_terminals_are_not_commanded() -> None:
    assert printable("a\x1b[31mred\x07\r\nb\tc\x9b2J") == "a [31mred b c 2J"


def test_every_error_has_something_to_say() -> None:
    assert advice(CollectionNotFound("none")) == "`shoal ls` lists them."
    for kind in TABLE.values():
        assert "\n" not in advice(kind("message"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CollectionNotFound("none is named x"), 1),
        (InvalidTopK("top_k is 0"), 1),
        (ClusterUnreachable("nothing answers"), 3),
        (InsufficientCoverage("shard 1 is missing"), 4),
    ],
)
def test_exit_codes(error, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught:
        output.fail(error)
    assert caught.value.exit_code == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[0] == f"error {error.reason}: {error.message}"


def answer_of(*hits: Hit) -> Answer:
    coverage = Coverage(10, 5, 2, 1, (MissingShard(1, "DEADLINE_EXCEEDED"),))
    return Answer(hits, coverage, "f" * 64, Timings(encode_ms=1.0, total_ms=2.5))


def test_answer_json_has_the_shape_that_programs_read() -> None:
    hit = Hit("a", 1 / 3, "t", "text é", {"n": [1]}, Span(0, 4), 1)
    shape = json.loads(json.dumps(output.answer_json(answer_of(hit))))
    assert list(shape) == ["hits", "coverage", "fingerprint", "timings"]
    assert shape["hits"] == [
        {
            "id": "a",
            "score": 1 / 3,
            "title": "t",
            "text": "text é",
            "payload": {"n": [1]},
            "chunk": {"start": 0, "end": 4},
            "shard": 1,
        }
    ]
    assert shape["coverage"] == {
        "ratio": 0.5,
        "documents_total": 10,
        "documents_covered": 5,
        "shards_total": 2,
        "shards_answered": 1,
        "missing": [{"shard": 1, "reason": "DEADLINE_EXCEEDED"}],
    }
    assert shape["timings"]["encode_ms"] == 1.0
    assert shape["timings"]["total_ms"] == 2.5


def test_answers_are_readable(capsys: pytest.CaptureFixture[str]) -> None:
    hit = Hit("id-1", 0.51234, "A title", "[bold]words[/bold] \x1b[2J here", chunk=None, shard=1)
    output.show_answer(answer_of(hit), "here?")
    printed = capsys.readouterr().out
    for part in ("rank", "0.5123", "A title", "id-1", "[bold]words[/bold]", "coverage 0.500"):
        assert part in printed
    assert "shard 1 missing: DEADLINE_EXCEEDED" in printed
    assert "\x1b" not in printed
    output.show_answer(answer_of(), "nothing")
    assert "no hits" in capsys.readouterr().out
