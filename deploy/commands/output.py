"""What commands print: answers for people, JSON for programs, errors with what to do next.

Data goes to stdout, everything else to stderr. Documents are foreign text: what
a terminal would obey is replaced before it is printed.
"""

from __future__ import annotations

import json
import re
import textwrap
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from shoal.errors import ClusterUnreachable, InsufficientCoverage, ShoalError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from shoal import Answer, Coverage
    from shoal.client.model import CollectionInfo, StoredDocument

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_PARTIAL = 4

SNIPPET_CHARACTERS = 200

TargetOption = Annotated[
    str,
    typer.Option(
        "--target",
        envvar="SHOAL_TARGET",
        metavar="HOST:PORT",
        help="Where a router of the cluster listens, or several, with commas between.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The collection.")]
DEFAULT_TARGET = "127.0.0.1:50051"


def fail(error: ShoalError) -> NoReturn:
    """Prints an error and what to do about it, and exits with the code for it."""
    message = " ".join(error.message.split())
    typer.echo(f"error {error.reason}: {message}", err=True)
    for note in [*getattr(error, "__notes__", ()), advice(error)]:
        if note:
            typer.echo(f"  {note}", err=True)
    if isinstance(error, ClusterUnreachable):
        raise typer.Exit(EXIT_UNREACHABLE)
    raise typer.Exit(EXIT_PARTIAL if isinstance(error, InsufficientCoverage) else EXIT_FAILED)


def advice(error: ShoalError) -> str:
    """What the error table says to do: all but the first sentence of the row."""
    sentences = " ".join((type(error).__doc__ or "").split())
    _, _, rest = re.sub(r"\.\s+", "\0", sentences, count=1).partition("\0")
    return rest


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def console(*, stderr: bool = False) -> Console:
    """The terminal as it is now."""
    from rich.console import Console  # noqa: PLC0415 - `shoal --help` does without it

    return Console(stderr=stderr, highlight=False)


def show(renderable: RenderableType) -> None:
    """Prints a table or text on stdout."""
    console().print(renderable)


def table(*columns: str, right: tuple[str, ...] = (), whole: tuple[str, ...] = ()) -> Table:
    """An empty table with these columns, those in `right` right-justified; neither they nor
    those in `whole` are broken over lines.
    """
    from rich import box  # noqa: PLC0415 - `shoal --help` does without it
    from rich.table import Table  # noqa: PLC0415

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        made.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=column in right or column in whole,
            overflow="fold",
        )
    return made


def printable(text: str) -> str:
    """The text on one line, without characters that a terminal would obey."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


# --- answers --------------------------------------------------------------------


def answer_json(answer: Answer) -> dict[str, Any]:
    """The answer as `shoal search --json` gives it."""
    return {
        "hits": [
            {
                "id": hit.id,
                "score": hit.score,
                "title": hit.title,
                "text": hit.text,
                "payload": hit.payload,
                "chunk": None
                if hit.chunk is None
                else {"start": hit.chunk.start, "end": hit.chunk.end},
                "shard": hit.shard,
            }
            for hit in answer
        ],
        "coverage": coverage_json(answer.coverage),
        "fingerprint": answer.fingerprint,
        "timings": {name: getattr(answer.timings, name) for name in type(answer.timings).__slots__},
    }


def coverage_json(coverage: Coverage) -> dict[str, Any]:
    """The coverage with its ratio."""
    return {
        "ratio": coverage.ratio,
        "documents_total": coverage.documents_total,
        "documents_covered": coverage.documents_covered,
        "shards_total": coverage.shards_total,
        "shards_answered": coverage.shards_answered,
        "missing": [{"shard": item.shard, "reason": item.reason} for item in coverage.missing],
    }


def show_answer(answer: Answer, question: str) -> None:
    """The hits as a table, then coverage and timings."""
    from rich.text import Text  # noqa: PLC0415 - `shoal --help` does without it

    words = sorted(set(re.findall(r"\w{3,}", question.lower())))
    rows = table("rank", "score", "title", "snippet", "shard", right=("rank", "score", "shard"))
    for rank, hit in enumerate(answer, 1):
        snippet = Text(snippet_of(hit.chunk_text, words))
        if words:
            snippet.highlight_regex(rf"(?i)\b({'|'.join(map(re.escape, words))})\b", "bold")
        title = Text(textwrap.shorten(printable(hit.title), 80, placeholder=" …"))
        title.append(f" [{printable(hit.id)}]" if hit.title else printable(hit.id), "dim")
        rows.add_row(str(rank), f"{hit.score:.4f}", title, snippet, str(hit.shard))
    show(rows if answer.hits else Text("no hits"))
    typer.echo(coverage_line(answer.coverage))
    typer.echo(timings_line(answer))


def coverage_line(coverage: Coverage) -> str:
    """How much answered, and what did not, on one line."""
    missing = "".join(f"; shard {item.shard} missing: {item.reason}" for item in coverage.missing)
    return (
        f"coverage {coverage.ratio:.3f}: {coverage.documents_covered:,} of "
        f"{coverage.documents_total:,} documents, {coverage.shards_answered} of "
        f"{coverage.shards_total} shards{missing}"
    )


def timings_line(answer: Answer) -> str:
    """Where the time went, on one line."""
    timings = answer.timings
    cached = " (cached)" if timings.encode_cached else ""
    return (
        f"{timings.total_ms:.1f} ms: encode {timings.encode_ms:.1f}{cached}, "
        f"queue {timings.queue_ms:.1f}, fan-out {timings.fan_out_ms:.1f}, "
        f"merge {timings.merge_ms:.1f}, fetch {timings.fetch_ms:.1f}"
    )


def snippet_of(text: str, words: list[str], length: int = SNIPPET_CHARACTERS) -> str:
    """The part of a passage with the most different words of the question, on one line.

    Args:
        text: the passage.
        words: words of the question in lower case.
        length: characters of the snippet at most, without the ellipses.
    """
    line = printable(text)
    if len(line) <= length:
        return line
    lower = line.lower()
    found = (
        [
            (match.start(), match.group())
            for match in re.finditer(rf"\b({'|'.join(map(re.escape, words))})\b", lower)
        ]
        if words
        else []
    )
    best, start = 0, 0
    for begin, _ in found:
        distinct = len({word for at, word in found if begin <= at < begin + length})
        if distinct > best:
            best, start = distinct, begin
    start = max(0, min(start - length // 8, len(line) - length))
    if start:
        start = lower.find(" ", start) + 1
    end = min(start + length, len(line))
    if end < len(line):
        end = max(line.rfind(" ", start, end), start + 1)
    return ("… " if start else "") + line[start:end] + (" …" if end < len(line) else "")


# --- collections and documents ------------------------------------------------------


def collection_json(collection: CollectionInfo) -> dict[str, Any]:
    """A collection and its shards."""
    from dataclasses import asdict  # noqa: PLC0415 - `shoal --help` does without it

    return asdict(collection)


def collections_table(collections: list[CollectionInfo]) -> Table:
    """One row for each collection."""
    rows = table(
        *("name", "kind", "documents", "shards", "encoder", "dim", "index"),
        right=("documents", "shards", "dim"),
    )
    for item in collections:
        rows.add_row(
            item.name,
            item.kind,
            f"{item.documents:,}",
            str(len(item.shards)),
            printable(item.encoder),
            str(item.dim),
            item.index,
        )
    return rows


def document_json(document: StoredDocument) -> dict[str, Any]:
    """A document as it was stored."""
    return {
        "id": document.id,
        "title": document.title,
        "text": document.text,
        "payload": document.payload,
    }
