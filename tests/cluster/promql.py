"""The little of PromQL that a test needs: which series an expression names."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

FUNCTIONS = {
    *("sum", "max", "min", "rate", "increase", "changes", "histogram_quantile"),
}
MODIFIERS = {"by", "without", "on", "ignoring"}
TOKEN = re.compile(
    r'\s*(?:(?P<string>"[^"]*")|(?P<range>\[[^\]]*\])|(?P<number>\d[\d.]*)'
    r"|(?P<word>[a-zA-Z_:][\w:]*)|(?P<sign>=~|!~|!=|==|>=|<=|[-+*/()<>{},=]))"
)
MATCH = {
    "=": lambda value, wanted: value == wanted,
    "!=": lambda value, wanted: value != wanted,
    "=~": lambda value, wanted: re.fullmatch(wanted, value) is not None,
    "!~": lambda value, wanted: re.fullmatch(wanted, value) is None,
}

Series = tuple[str, Mapping[str, str]]


@dataclass(frozen=True)
class Selector:
    """A metric with its matchers: (label, sign, value)."""

    name: str
    matchers: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Expression:
    selectors: tuple[Selector, ...]
    grouping: frozenset[str]


def tokens(text: str) -> list[tuple[str, str]]:
    found, at = [], 0
    text = text.strip()
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise ValueError(f"no PromQL at {text[at:]!r}")
        found.append((match.lastgroup, match[match.lastgroup]))
        at = match.end()
    return found


def parse(text: str) -> Expression:
    """Selectors and grouping labels; unknown functions and unbalanced brackets are errors."""
    left = tokens(text)
    if any(
        sum(value == opening for _, value in left) != sum(value == closing for _, value in left)
        for opening, closing in ("()", "{}")
    ):
        raise ValueError(f"brackets do not balance in {text!r}")
    selectors, grouping = [], set()
    while left:
        kind, value = left.pop(0)
        follows = left[0][1] if left else ""
        if kind != "word":
            continue
        if value in MODIFIERS:
            end = left.index(("sign", ")"))
            grouping |= {word for kind, word in left[:end] if kind == "word"}
            del left[: end + 1]
        elif follows == "(" or follows in MODIFIERS:
            if value not in FUNCTIONS:
                raise ValueError(f"{value} is no known function")
        elif follows == "{":
            end = left.index(("sign", "}"))
            inside = [item for _, item in left[1:end] if item != ","]
            del left[: end + 1]
            labels, signs, values = inside[::3], inside[1::3], inside[2::3]
            selectors.append(
                Selector(
                    value,
                    tuple(
                        (label, sign, wanted.strip('"'))
                        for label, sign, wanted in zip(labels, signs, values, strict=True)
                    ),
                )
            )
        else:
            selectors.append(Selector(value))
    return Expression(tuple(selectors), frozenset(grouping))


def faults(text: str, series: Iterable[Series]) -> list[str]:
    """What an expression names that no scraped series has."""
    parsed, scraped = parse(text), list(series)
    found = [] if parsed.selectors else [f"{text!r} selects nothing"]
    common: list[set[str]] = []
    for selector in parsed.selectors:
        named = [labels for name, labels in scraped if name == selector.name]
        if not named:
            found.append(f"there is no metric {selector.name}")
            continue
        common.append(set.intersection(*(set(labels) for labels in named)))
        wanted = {label for label, _, _ in selector.matchers}
        found += [f"{selector.name} has no label {label}" for label in sorted(wanted - common[-1])]
        if not any(
            all(
                MATCH[sign](labels.get(label, ""), value)
                for label, sign, value in selector.matchers
            )
            for labels in named
        ):
            found.append(f"nothing matches {selector}")
    known = set.intersection(*common) if common else set()
    return found + [f"nothing has the label {label}" for label in sorted(parsed.grouping - known)]
