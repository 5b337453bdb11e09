"""Typed settings from the environment, read once at start.

A service defines a frozen dataclass; `load` fills it from `<PREFIX><FIELD>`
variables and refuses names that it does not know, so that a typo is an error
and not a default.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeVar, get_type_hints

Settings = TypeVar("Settings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may ask for. Published by `status`, named in errors.

    Attributes:
        max_message_bytes: one gRPC message.
        max_dim: columns of a vector.
        max_top_k: documents of one answer.
        max_batch: queries or texts of one message.
        max_ids: ids of one Get, Delete or Rerank.
        max_explained: documents of one Explain.
        max_text_bytes: UTF-8 bytes of one document's text.
        max_query_bytes: UTF-8 bytes of one question.
        max_payload_bytes: bytes of one document's payload.
        max_shards: shards of one collection.
        max_deadline_ms: longest time that one request may take.
    """

    max_message_bytes: int = 64 << 20
    max_dim: int = 16_384
    max_top_k: int = 10_000
    max_batch: int = 4_096
    max_ids: int = 10_000
    max_explained: int = 100
    max_text_bytes: int = 16 << 20
    max_query_bytes: int = 1 << 20
    max_payload_bytes: int = 1 << 20
    max_shards: int = 1_024
    max_deadline_ms: int = 600_000


def load(
    kind: type[Settings], prefix: str, environment: Mapping[str, str] | None = None
) -> Settings:
    """Builds `kind` from its defaults and the variables that begin with `prefix`.

    Fields may be int, float, str or bool (1/0, true/false).

    Raises:
        ValueError: a variable names no field, or its value is of another type.
    """
    source = os.environ if environment is None else environment
    hints = get_type_hints(kind)
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, object] = {}
    for variable, text in source.items():
        if not variable.startswith(prefix):
            continue
        name = variable.removeprefix(prefix).lower()
        if name not in names:
            known = ", ".join(sorted(prefix + known.upper() for known in names))
            raise ValueError(f"{variable} is no setting; known are {known}")
        values[name] = _parse(variable, text, hints[name])
    return kind(**values)


def _parse(variable: str, text: str, kind: object) -> object:
    try:
        if kind is bool:
            return {"1": True, "true": True, "0": False, "false": False}[text.lower()]
        if kind is int:
            return int(text)
        if kind is float:
            return float(text)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{variable}={text!r} is no {getattr(kind, '__name__', kind)}") from error
    return text
