"""Renders the reference pages that are made from code. `make lint` checks for drift.

Example:
    python tools/render_docs.py --check
"""

import argparse
import inspect
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from encoder_service.settings import EncoderSettings
from router.settings import RouterSettings
from shard_service.settings import ShardSettings
from shoal.errors import TABLE, ShoalError
from shoal.settings import Limits

DOCS = Path(__file__).resolve().parent.parent / "docs"
SETTINGS = {
    "SHOAL_LIMIT_": Limits,
    "SHOAL_ROUTER_": RouterSettings,
    "SHOAL_ENCODER_": EncoderSettings,
    "SHOAL_SHARD_": ShardSettings,
}


def yes(value: bool) -> str:
    """A table's mark."""
    return "yes" if value else ""


def one_line(text: str | None) -> str:
    """A docstring without line ends."""
    return " ".join((text or "").split()).replace("|", "\\|")


def errors_page() -> str:
    """Every reason, its gRPC code, and what to do."""
    rows = [
        f"| `{error.reason}` | `{error.code.name}` | `{error.__name__}` | {yes(error.retryable)} "
        f"| {yes(error.caller_fault)} | {one_line(error.__doc__)} |"
        for error in TABLE.values()
    ]
    return "\n".join(
        [
            "# Errors",
            "",
            "Made from `shoal/errors.py` by `tools/render_docs.py`. On the wire an error is a gRPC",
            "code with a `google.rpc.ErrorInfo` (domain `shoal`) that holds the reason and its",
            "metadata, and a `RetryInfo` where waiting helps. The Python client raises the class,",
            f"a subclass of `shoal.errors.{ShoalError.__name__}`.",
            "",
            "| reason | gRPC code | class | retry | caller's fault | meaning, and what to do |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def attribute_texts(kind: type[Any]) -> dict[str, str]:
    """The lines of a docstring's Attributes section, by attribute."""
    section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.split(r"\n(?=    \w)", section)
    pairs = (entry.strip().partition(":") for entry in entries if entry.strip())
    return {name.strip(): one_line(text) for name, _, text in pairs}


def settings_page() -> str:
    """Every setting, its default and meaning."""
    lines = [
        "# Settings",
        "",
        "Made from the services' `settings.py` by `tools/render_docs.py`. Each is an environment",
        "variable, read once at start; a variable with a known prefix and an unknown name is an",
        "error.",
    ]
    for prefix, kind in SETTINGS.items():
        texts = attribute_texts(kind)
        lines += ["", f"## `{prefix}*`", "", "| variable | default | meaning |", "|---|---|---|"]
        lines += [
            f"| `{prefix}{field.name.upper()}` | `{field.default!r}` | {texts[field.name]} |"
            for field in fields(kind)
        ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Writes the pages, or with --check only compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if a committed page differs")
    check = parser.parse_args().check
    for name, text in {"errors.md": errors_page(), "settings.md": settings_page()}.items():
        page = DOCS / name
        if not check:
            page.write_text(text)
        elif not page.exists() or page.read_text() != text:
            sys.exit(f"docs/{name} differs from the code, run `python tools/render_docs.py`")


if __name__ == "__main__":
    main()
