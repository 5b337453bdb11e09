"""Writes a model's golden texts: `python -m encoder_service.golden REFERENCE < texts`.

Each line of the input is "query" or "document", a tab, and a text. The output
is the content of `shoal_golden.json`, which stands in the model's folder. Run it
where the model is known to be right, in fp32.
"""

import sys
from typing import TextIO

from encoder_service.models import golden_json, load
from encoder_service.settings import EncoderSettings


def main(reference: str, lines: TextIO, output: TextIO) -> None:
    """Encodes the texts of `lines` and writes them with their vectors."""
    texts: list[tuple[str, str]] = []
    for number, line in enumerate(lines, 1):
        side, tab, text = line.rstrip("\n").partition("\t")
        if side not in ("query", "document") or not tab:
            raise SystemExit(f"line {number}: begin with query or document, and a tab")
        texts.append((side, text))
    model = load(reference, "", EncoderSettings(), ("cpu", "fp32"))
    output.write(golden_json(model, texts))


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin, sys.stdout)
