"""Readers of BEIR's files: corpora and queries as JSON lines, judgements as TSV."""

import bisect
import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from shoal.errors import InvalidRequest

STDIN = Path("-")


class BadLine(NamedTuple):
    """A line that is no document, and why."""

    file: str
    line: int
    message: str


class Origin(NamedTuple):
    """Where a document was read."""

    file: str
    line: int


class CorpusReader:
    """Iterates over the documents of corpus files, one JSON object a line.

    A bad line is told and skipped. After each document, `bytes_read` says how
    far the files were read, and `origin` finds the line of any document so far
    by its number (from 0).

    Args:
        files: BEIR's corpus.jsonl, plain or gzip; `-` is stdin.
        on_bad_line: told of each bad line.
    """

    def __init__(self, files: Sequence[Path], on_bad_line: Callable[[BadLine], None]) -> None:
        self._files = files
        self._on_bad_line = on_bad_line
        # (number, file, line) wherever the lines stop to run with the numbers.
        self._runs: list[tuple[int, str, int]] = []
        self.documents = 0
        self.bytes_read = 0

    @property
    def bytes_total(self) -> int | None:
        """Bytes of all files, or None when stdin is among them."""
        if STDIN in self._files:
            return None
        return sum(file.stat().st_size for file in self._files)

    def origin(self, number: int) -> Origin:
        """File and line of a document by its number."""
        index = bisect.bisect_right(self._runs, number, key=lambda run: run[0]) - 1
        first, file, line = self._runs[index]
        return Origin(file, line + number - first)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        done = 0
        for file in self._files:
            name = "stdin" if file == STDIN else str(file)
            expected = None
            with _opened(file) as (raw, lines):
                for number, data in _numbered(lines, name):
                    document = self._document(data, name, number)
                    self.bytes_read = done + (raw.tell() if raw.seekable() else 0)
                    if document is None:
                        continue
                    if number != expected:
                        self._runs.append((self.documents, name, number))
                    expected = number + 1
                    self.documents += 1
                    yield document
            done = self.bytes_read

    def _document(self, data: bytes, file: str, line: int) -> dict[str, Any] | None:
        if not data.strip():
            return None
        try:
            parsed = json.loads(data)
        except (ValueError, RecursionError) as error:
            self._on_bad_line(BadLine(file, line, f"this is no JSON: {error}"))
            return None
        if not isinstance(parsed, dict):
            self._on_bad_line(BadLine(file, line, "this is no JSON object"))
            return None
        return parsed


def read_queries(file: Path) -> dict[str, str]:
    """The queries' words by id.

    Raises:
        InvalidRequest: a line is no query; it is named.
    """
    queries: dict[str, str] = {}
    with _opened(file) as (_, lines):
        for number, data in _numbered(lines, str(file)):
            if not data.strip():
                continue
            try:
                query = json.loads(data)
                query_id, text = query.get("_id", query.get("id")), query["text"]
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                raise InvalidRequest(
                    f'{file}:{number}: a query is {{"_id": ..., "text": ...}} ({error!r})'
                ) from error
            queries[str(query_id)] = text
    return queries


def read_questions(file: Path) -> list[str]:
    """The words of BEIR's queries, or of a plain text one question a line.

    A file is BEIR's if its first line that is not blank begins with a brace.

    Raises:
        InvalidRequest: a line is no query, or there is none.
    """
    with _opened(file) as (_, lines):
        given = [data.strip() for _, data in _numbered(lines, str(file)) if data.strip()]
    if not given:
        raise InvalidRequest(f"{file}: there is no question; give one a line", field="queries")
    if given[0].startswith(b"{"):
        return list(read_queries(file).values())
    try:
        return [data.decode() for data in given]
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{file} is no UTF-8 text: {error}", field="queries") from error


def read_qrels(file: Path) -> dict[str, dict[str, int]]:
    """Judgements by query id and document id; the file has one header line.

    Raises:
        InvalidRequest: a line is no judgement; it is named.
    """
    qrels: dict[str, dict[str, int]] = {}
    with _opened(file) as (_, lines):
        for number, data in _numbered(lines, str(file)):
            if number == 1 or not data.strip():
                continue
            try:
                query_id, document_id, score = data.decode().rstrip("\r\n").split("\t")
                qrels.setdefault(query_id, {})[document_id] = int(score)
            except ValueError as error:
                raise InvalidRequest(
                    f"{file}:{number}: a judgement is query-id, corpus-id, score, "
                    f"separated by tabs ({error})"
                ) from error
    return qrels


def _numbered(lines: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """The lines from 1; a damaged gzip file is an error that names it."""
    number = 0
    try:
        for data in lines:
            number += 1
            yield number, data
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidRequest(f"{name}: damaged after line {number}: {error}") from error


@contextmanager
def _opened(file: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The raw file, and its lines unpacked if its name ends with .gz."""
    if file == STDIN:
        yield sys.stdin.buffer, sys.stdin.buffer
        return
    with file.open("rb") as raw:
        if file.suffix != ".gz":
            yield raw, raw
            return
        with gzip.open(raw) as lines:
            yield raw, cast(IO[bytes], lines)
