"""`shoal explain`, and how explanations are shown: text, JSON and an HTML heat map."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

import shoal
from deploy.commands.output import (
    DEFAULT_TARGET,
    JsonOption,
    NameArgument,
    TargetOption,
    print_json,
    printable,
    show,
    table,
)

if TYPE_CHECKING:
    from rich.table import Table

    from shoal.client.explained import ExplainedAnswer, Explanation, Match, Token

_Heat: TypeAlias = dict[tuple[int, int], tuple[float, list[int]]]
"""Per span of characters: the similarities of what matched it, and by which tokens."""
_HOTTEST = 0.85
"""Opacity of the word with the largest share."""
_STYLE = """
body { font: 16px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; color: #1a1a1a; }
h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; } .facts { color: #666; font-size: .9rem; }
mark { color: inherit; border-radius: .2rem; padding: .05rem 0; }
table { border-collapse: collapse; font-size: .9rem; margin-top: .6rem; }
td, th { text-align: left; padding: .1rem .9rem .1rem 0; } td.number { text-align: right; }
"""


class EffortChoice(StrEnum):
    """Values of --effort."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    EXHAUSTIVE = "exhaustive"


EffortOption = Annotated[
    EffortChoice | None,
    typer.Option("--effort", help="Kind colbert: how hard to look; without it, normal."),
]
HtmlOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Kind colbert: write the matches as a heat map."),
]


def explain(
    name: NameArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The question, in words.")],
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The documents' ids.")],
    top_k: Annotated[int, typer.Option("-k", "--top-k", help="Hits of the search.")] = 10,
    effort: EffortOption = None,
    target: TargetOption = DEFAULT_TARGET,
    json: JsonOption = False,
) -> None:
    """Say why documents match, or why a search does not find them (kind colbert).

    Example: shoal explain papers "does vitamin D protect against infections?" 4983
    """
    with shoal.connect(target) as client:
        how = "" if effort is None else effort.value
        why = client.explain(name, text, ids=ids, top_k=top_k, effort=how)
    show_explained(why, text, json=json, page=None)


def explained_json(answer: ExplainedAnswer) -> dict[str, Any]:
    """Everything, for a program; each match with its error."""
    made = asdict(answer)
    for explanation, shown in zip(answer.explanations, made["explanations"], strict=True):
        for match, fields in zip(explanation.matches, shown["matches"], strict=True):
            fields["error"] = match.error
    return made


def show_explained(
    answer: ExplainedAnswer, question: str, *, json: bool, page: Path | None
) -> None:
    """Prints an explanation, or its JSON, and writes the heat map where one is wanted."""
    if page is not None:
        page.write_text(heat_map(answer, question))
        typer.echo(f"wrote {page}", err=True)
    if json:
        print_json(explained_json(answer))
        return
    for explanation in answer.explanations:
        _show(explanation, answer.tokens)


def _show(explanation: Explanation, tokens: Sequence[Token]) -> None:
    from rich.text import Text  # noqa: PLC0415 - `shoal --help` does without it

    title = printable(explanation.title)
    heading = Text(f"{title} " if title else "", "bold")
    heading.append(f"[{printable(explanation.id)}]", "dim")
    show(heading)
    typer.echo(outcome_line(explanation))
    if not explanation.matches:
        return
    begin, passage = _passage(explanation)
    shown = Text(passage)
    for match in explanation.matches:
        if match.token is not None and match.token.origin == "text":
            start, end = match.token.span
            shown.stylize("bold reverse", start - begin, end - begin)
    show(shown)
    show(_matches_table(explanation, tokens))


def outcome_line(explanation: Explanation) -> str:
    """What became of a document, on one line."""
    score = f"score {explanation.score:.4f}"
    if explanation.outcome == "hit":
        return f"rank {explanation.rank}, {score}"
    if explanation.outcome == "dropped_by_centroids":
        return (
            f"dropped by centroids: {explanation.centroid_score:.4f} there, the last one looked "
            f"at has {explanation.centroid_cut:.4f}; its full {score}"
        )
    if explanation.outcome == "dropped_by_score":
        return f"dropped by score: {score}, the last hit has {explanation.score_cut:.4f}"
    return "not found: it is not stored, or has no token"


def _matches_table(explanation: Explanation, tokens: Sequence[Token]) -> Table:
    rows = table(
        *("question", "matched", "similarity", "share", "error"),
        right=("similarity", "share", "error"),
    )
    for number, match in enumerate(explanation.matches):
        error = match.error
        rows.add_row(
            _word(tokens[number]) if number < len(tokens) else str(number),
            _matched(match),
            f"{match.similarity:.4f}",
            f"{match.similarity / explanation.score:.1%}" if explanation.score else "",
            "" if error is None else f"{error:+.4f}",
        )
    return rows


def _word(token: Token) -> str:
    return printable(token.token)


def _matched(match: Match) -> str:
    if match.token is None:
        return f"token {match.document_token}"
    where = "" if match.token.origin == "text" else f" ({match.token.origin})"
    return f"{_word(match.token)}{where}"


def _passage(explanation: Explanation) -> tuple[int, str]:
    """Where the best passage begins, and its text."""
    if explanation.chunk is None:
        return 0, explanation.text
    return explanation.chunk.start, explanation.text[
        explanation.chunk.start : explanation.chunk.end
    ]


# --- the heat map -----------------------------------------------------------------


def heat_map(answer: ExplainedAnswer, question: str) -> str:
    """A page of its own: every passage with its words coloured by their share of the score."""
    sections = "".join(_section(each, answer.tokens) for each in answer.explanations)
    title = html.escape(question)
    return (
        f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
        f"<h1>{title}</h1>{sections}\n"
    )


def _section(explanation: Explanation, tokens: Sequence[Token]) -> str:
    heading = html.escape(explanation.title or explanation.id)
    facts = html.escape(f"{explanation.id}: {outcome_line(explanation)}")
    rows = "".join(
        f"<tr><td>{html.escape(_word(tokens[number]) if number < len(tokens) else str(number))}"
        f"<td>{html.escape(_matched(match))}<td class=number>{match.similarity:.4f}"
        for number, match in enumerate(explanation.matches)
    )
    return (
        f"<h2>{_heated(explanation.title, _shares(explanation, 'title'), 0) or heading}</h2>"
        f"<p class=facts>{facts}</p><p>{_heated_passage(explanation)}</p>"
        f"<table><tr><th>question<th>matched<th>similarity{rows}</table>"
    )


def _heated_passage(explanation: Explanation) -> str:
    begin, passage = _passage(explanation)
    return _heated(passage, _shares(explanation, "text"), begin)


def _shares(explanation: Explanation, origin: str) -> _Heat:
    """Per span of characters: the similarities of what matched it, and by which tokens."""
    shares: _Heat = {}
    for number, match in enumerate(explanation.matches):
        if match.token is not None and match.token.origin == origin:
            total, by = shares.get(match.token.span, (0.0, []))
            shares[match.token.span] = total + match.similarity, [*by, number]
    return shares


def _heated(text: str, shares: _Heat, begin: int) -> str:
    hottest = max((total for total, _ in shares.values()), default=1.0)
    parts: list[str] = []
    at = 0
    for (start, end), (total, by) in sorted(shares.items()):
        if start - begin < at:
            continue
        heat = _HOTTEST * max(0.0, total / hottest)
        word = html.escape(text[start - begin : end - begin])
        parts.append(html.escape(text[at : start - begin]))
        parts.append(
            f'<mark title="{total:.3f} by question tokens {", ".join(map(str, by))}" '
            f'style="background: rgba(255, 140, 0, {heat:.2f})">{word}</mark>'
        )
        at = end - begin
    return "".join([*parts, html.escape(text[at:])])
