"""`shoal ingest`, `search`, `get`, `delete`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import shoal
from deploy.commands.beir import STDIN, BadLine, CorpusReader
from deploy.commands.explained import EffortOption, HtmlOption, explain, show_explained
from deploy.commands.output import (
    DEFAULT_TARGET,
    EXIT_FAILED,
    EXIT_PARTIAL,
    JsonOption,
    NameArgument,
    TargetOption,
    answer_json,
    console,
    document_json,
    print_json,
    printable,
    show_answer,
)
from shoal.errors import InvalidRequest, ShoalError

if TYPE_CHECKING:
    from rich.console import Console

    from shoal.client.ingest import Progress
    from shoal.client.model import IngestReport, Rejection


def _existing(files: list[Path]) -> list[Path]:
    for file in files:
        if file != STDIN and not file.is_file():
            raise typer.BadParameter(f"there is no file {file}")
    return files


CorpusFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...",
        callback=_existing,
        help="BEIR corpus.jsonl, plain or .gz; - is stdin.",
    ),
]


def ingest(
    name: NameArgument,
    files: CorpusFiles,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first bad line or refused document.")
    ] = False,
    target: TargetOption = DEFAULT_TARGET,
    json: JsonOption = False,
) -> None:
    """Store documents from JSON lines: _id, title, text; other fields are kept as payload.

    Run it again after an interruption: what is stored unchanged is skipped. A
    bad line is reported with its number and skipped; the exit code is 1 if
    anything was refused.

    Example: shoal ingest papers corpus.jsonl.gz
    """
    run = _IngestRun(files, strict)
    started = time.monotonic()
    with shoal.connect(target) as client, run.shown() as progress, run.located():
        report = client.ingest(
            name, run.reader, progress=progress, on_rejected="raise" if strict else "collect"
        )
    seconds = time.monotonic() - started
    if json:
        print_json(run.json(report, seconds))
    else:
        typer.echo(run.summary(report, seconds))
    if report.rejected or run.bad_lines:
        raise typer.Exit(EXIT_FAILED)


class _IngestRun:
    """One run of `shoal ingest`: what was wrong, and how far it is."""

    def __init__(self, files: list[Path], strict: bool) -> None:
        self.reader = CorpusReader(files, self._bad_line)
        self.bad_lines: list[BadLine] = []
        self._strict = strict
        self._told = 0
        self._console: Console = console(stderr=True)

    def _bad_line(self, bad: BadLine) -> None:
        if self._strict:
            raise InvalidRequest(f"{bad.file}:{bad.line}: {bad.message}", field="file")
        self.bad_lines.append(bad)
        self._tell(f"{bad.file}:{bad.line}: {bad.message}")

    def _tell(self, line: str) -> None:
        self._console.print(printable(line), markup=False, soft_wrap=True)

    def _tell_rejections(self, report: IngestReport) -> None:
        for item in report.rejected[self._told :]:
            file, line = self.reader.origin(item.number)
            self._tell(f"{file}:{line}: {item.id!r} was refused: {item.reason}: {item.message}")
        self._told = len(report.rejected)

    @contextmanager
    def located(self) -> Iterator[None]:
        """Adds file and line to the error of a refused document."""
        try:
            yield
        except ShoalError as error:
            if number := error.metadata.get("number"):
                origin = self.reader.origin(int(number))
                error.add_note(f"It is at {origin.file}:{origin.line}.")
            raise

    @contextmanager
    def shown(self) -> Iterator[Progress]:
        """A progress bar on stderr where that is a terminal."""
        if not self._console.is_terminal:
            yield self._tell_rejections
            return
        from rich import progress as bars  # noqa: PLC0415 - `shoal --help` does without it

        with bars.Progress(
            bars.TextColumn("ingest"),
            bars.BarColumn(),
            bars.TextColumn(
                "{task.fields[documents]:,} documents, {task.fields[rate]:,.0f}/s, ETA"
            ),
            bars.TimeRemainingColumn(),
            console=self._console,
            transient=True,
        ) as bar:
            task = bar.add_task("ingest", total=self.reader.bytes_total, documents=0, rate=0.0)
            started = time.monotonic()

            def update(report: IngestReport) -> None:
                self._tell_rejections(report)
                done, read = report.documents, self.reader.documents
                bar.update(
                    task,
                    # Bytes behind the acknowledged share of what was read.
                    completed=self.reader.bytes_read * done / max(1, read),
                    documents=done,
                    rate=done / max(1e-3, time.monotonic() - started),
                )

            yield update

    def summary(self, report: IngestReport, seconds: float) -> str:
        """What became of all lines, on one line."""
        parts = [
            f"{report.stored:,} stored",
            f"{report.unchanged:,} unchanged",
            f"{len(report.rejected) + len(self.bad_lines):,} refused",
        ]
        if report.duplicates:
            parts.append(f"{report.duplicates:,} duplicate ids (the later document won)")
        if report.truncated:
            parts.append(f"{report.truncated:,} not encoded to their end")
        rate = report.documents / max(seconds, 1e-3)
        return f"{', '.join(parts)} in {seconds:.1f} s ({rate:,.0f} documents/s)"

    def json(self, report: IngestReport, seconds: float) -> dict[str, Any]:
        """The same for a program."""
        return {
            "stored": report.stored,
            "unchanged": report.unchanged,
            "duplicates": report.duplicates,
            "truncated": report.truncated,
            "rejected": [self._rejection(item) for item in report.rejected],
            "bad_lines": [bad._asdict() for bad in self.bad_lines],
            "seconds": seconds,
        }

    def _rejection(self, item: Rejection) -> dict[str, Any]:
        return {
            "id": item.id,
            "reason": item.reason,
            "message": item.message,
            **self.reader.origin(item.number)._asdict(),
        }


def search(  # noqa: PLR0913 - each is an option of the command
    name: NameArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The question, in words.")],
    *,
    top_k: Annotated[int, typer.Option("-k", "--top-k", help="Documents wanted.")] = 10,
    min_coverage: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Accept an answer from this share of the documents (exit 4)."
        ),
    ] = 1.0,
    deadline: Annotated[float, typer.Option(metavar="SECONDS", help="Time for the call.")] = 10.0,
    effort: EffortOption = None,
    why: Annotated[
        bool, typer.Option("--explain", help="Kind colbert: say which words matched which.")
    ] = False,
    explain_html: HtmlOption = None,
    target: TargetOption = DEFAULT_TARGET,
    json: JsonOption = False,
) -> None:
    """Find the documents that mean this.

    Exits with 4 if a part of the collection did not answer.

    Example: shoal search papers "does vitamin D protect against infections?" -k 3
    """
    with shoal.connect(target) as client:
        how: dict[str, Any] = {
            "top_k": top_k,
            "min_coverage": min_coverage,
            "deadline_s": deadline,
            "effort": "" if effort is None else effort.value,
        }
        if why or explain_html is not None:
            show_explained(client.explain(name, text, **how), text, json=json, page=explain_html)
            return
        answer = client.search(name, text, **how)
    if json:
        print_json(answer_json(answer))
    else:
        show_answer(answer, text)
    if answer.coverage.missing:
        raise typer.Exit(EXIT_PARTIAL)


def get(
    name: NameArgument,
    document_id: Annotated[str, typer.Argument(metavar="ID", help="The document's id.")],
    target: TargetOption = DEFAULT_TARGET,
    json: JsonOption = False,
) -> None:
    """Print a document as it was stored.

    Exits with 1 if there is none.

    Example: shoal get papers 4983 --json
    """
    with shoal.connect(target) as client:
        document = client.get(name, document_id)
    if document is None:
        typer.echo(f"not found: {printable(document_id)}", err=True)
        raise typer.Exit(EXIT_FAILED)
    if json:
        print_json(document_json(document))
        return
    for key, value in document_json(document).items():
        if value:
            typer.echo(f"{key}: {printable(str(value))}")


def delete(
    name: NameArgument,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The documents' ids.")],
    target: TargetOption = DEFAULT_TARGET,
    json: JsonOption = False,
) -> None:
    """Delete documents by id; an id that is not stored is told, and no error.

    Example: shoal delete papers 4983 5836
    """
    with shoal.connect(target) as client:
        report = client.delete(name, ids)
    missing = [item for item, found in zip(ids, report.found, strict=True) if not found]
    if json:
        print_json({"deleted": report.deleted, "not_found": missing})
        return
    typer.echo(f"{report.deleted:,} deleted")
    for item in missing:
        typer.echo(f"not found: {printable(item)}", err=True)


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(ingest)
    app.command()(search)
    app.command()(explain)
    app.command()(get)
    app.command()(delete)
