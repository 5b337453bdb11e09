"""Renders the part of Helm's templates that Shoal's chart keeps to.

`{{ .Path }}` with `quote`, `default .Path`, `toYaml` and `nindent N`; `if`, `with`, `else` and
`end`; dashes that trim. Anything else is an error, so the chart stays within what is checked.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ACTION = re.compile(r"(\s*)\{\{(-?)\s*(.*?)\s*(-?)\}\}", re.S)
PATH = re.compile(r"\.[\w.]*")


class Unsupported(Exception):
    """The template goes beyond what this renderer, and so its tests, cover."""


def render(chart: Path, values: Mapping[str, Any], release: str) -> dict[str, list[Any]]:
    """The chart's documents, by template."""
    facts = yaml.safe_load((chart / "Chart.yaml").read_text())
    scope = {
        "Values": values,
        "Release": {"Name": release},
        "Chart": {"AppVersion": facts["appVersion"]},
    }
    return {
        path.name: [
            document
            for document in yaml.safe_load_all(render_text(path.read_text(), scope))
            if document is not None
        ]
        for path in sorted((chart / "templates").glob("*.yaml"))
    }


def references(text: str) -> set[str]:
    """Every `.Values` path that a template reads, without `.Values.`."""
    return {
        path.removeprefix(".Values.")
        for _, _, action, _ in ACTION.findall(text)
        for path in PATH.findall(action)
        if path.startswith(".Values.")
    }


def render_text(text: str, scope: Mapping[str, Any]) -> str:
    shown: list[str] = []
    # Per open block: (whether what is inside shows, what "." is there).
    blocks: list[tuple[bool, Any]] = [(True, scope)]
    at = 0
    for match in ACTION.finditer(text):
        before, trim, action, trim_after = match.groups()
        visible, dot = blocks[-1]
        literal = text[at : match.start()] + ("" if trim else before)
        at = match.end()
        if trim_after:
            at += len(text[at:]) - len(text[at:].lstrip())
        if visible:
            shown.append(literal)
        word, _, rest = action.partition(" ")
        if word in {"if", "with"}:
            found = look_up(rest, scope, dot)
            blocks.append((visible and bool(found), found if word == "with" else dot))
        elif word == "else" and not rest:
            blocks.pop()
            outer, outer_dot = blocks[-1]
            blocks.append((outer and not visible, outer_dot))
        elif word == "end":
            blocks.pop()
        elif visible:
            shown.append(evaluate(action, scope, dot))
    if len(blocks) != 1:
        raise Unsupported("an if or with has no end")
    return "".join(shown) + text[at:]


def look_up(path: str, scope: Mapping[str, Any], dot: Any) -> Any:
    negated = path.startswith("not ")
    path = path.removeprefix("not ")
    if not PATH.fullmatch(path):
        raise Unsupported(path)
    if path == ".":
        return dot
    found: Any = scope
    for name in path[1:].split("."):
        found = found[name]
    return not found if negated else found


def evaluate(action: str, scope: Mapping[str, Any], dot: Any) -> str:
    first, *pipes = [part.strip() for part in action.split("|")]
    word, _, rest = first.partition(" ")
    as_yaml = word == "toYaml"
    found = look_up(rest if as_yaml else first, scope, dot)
    if as_yaml:
        found = yaml.safe_dump(found, default_flow_style=False).rstrip("\n")
    for pipe in pipes:
        name, _, argument = pipe.partition(" ")
        if name == "quote":
            found = json.dumps(str(found))
        elif name == "default":
            found = found or look_up(argument, scope, dot)
        elif name == "nindent":
            indent = " " * int(argument)
            found = "\n" + "\n".join(indent + line for line in str(found).splitlines())
        else:
            raise Unsupported(pipe)
    return str(found)
