"""Fits the projection of a late-interaction model: principal directions of token vectors.

The directions are those of a second moment of unit vectors, uncentred, so that dot products
between tokens, which MaxSim sums, are kept as well as a linear map can. The moment is that of
every whole word of the vocabulary, encoded by itself, and half that of a corpus' tokens: words
alone know nothing of running text, and one corpus knows only its own words.
Source: Pearson, On lines and planes of closest fit (1901).

Example:
    python -m encoder_service.projection all-minilm-l6-v2 96 corpus.jsonl.gz model.safetensors
"""

import argparse
import dataclasses
import gzip
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from encoder_service.backends.layout import Layout, read_layout
from encoder_service.backends.port import Backend, ModelInput
from encoder_service.backends.reference import find
from encoder_service.backends.tokenizer import Tokenizer
from encoder_service.backends.torch_backend import TorchBackend, configure_threads
from encoder_service.core.batching import padded_length
from encoder_service.core.card import Card, Pooling
from encoder_service.core.vectors import finish
from encoder_service.prepare import prepare_document
from shoal.types import Float32Matrix

_BATCH = 32
_TEXT_SHARE = 0.5
_ALONE = 3
"""Tokens of a word that is one token, with what the encoder puts around it."""


def principal_directions(moment: NDArray[np.float64], count: int) -> Float32Matrix:
    """The first eigenvectors of a second moment.

    Args:
        moment: float64[dim, dim], symmetric.
        count: directions wanted, 1 to dim.

    Returns:
        float32[count, dim], largest eigenvalue first; of each the entry that is largest in
        size is positive, so that the same moment gives the same directions.
    """
    _, vectors = np.linalg.eigh(moment)
    rows = vectors[:, ::-1][:, :count].T
    largest = rows[np.arange(count), np.abs(rows).argmax(axis=1)]
    directions: Float32Matrix = (rows * np.sign(largest)[:, np.newaxis]).astype(np.float32)
    return directions


def second_moment(backend: Backend, card: Card, texts: Sequence[ModelInput]) -> NDArray[np.float64]:
    """float64[dim, dim]: the mean outer product of the texts' unit token vectors."""
    total, tokens = np.zeros((card.dim, card.dim)), 0
    ordered = sorted(texts, key=lambda text: len(text.ids))
    for at in range(0, len(ordered), _BATCH):
        batch = ordered[at : at + _BATCH]
        length = padded_length(len(batch[-1].ids), card.max_tokens)
        rows = finish(np.concatenate(backend.encode(batch, length)), card.dim, normalize=True)
        total += rows.T.astype(np.float64) @ rows
        tokens += len(rows)
        print(f"{at + len(batch)} of {len(ordered)} texts", end="\r", flush=True)  # noqa: T201
    return total / tokens


def _words(layout: Layout) -> Iterator[ModelInput]:
    """Each word of two letters or more that is one token, alone; special tokens are not kept."""
    tokenizer = Tokenizer(layout.transformer / "tokenizer.json", layout.card.lowercase)
    tokenizer.prepare_cut(layout.card.max_document_tokens)
    for word in sorted(tokenizer.vocabulary):
        if len(word) > 1 and word.isalpha():
            ids = prepare_document(layout.card, tokenizer, "", word, (0, 0)).inputs[0].ids
            if len(ids) == _ALONE:
                yield ModelInput(ids, len(ids), np.array([False, True, False]))


def _texts(layout: Layout, corpus: Path) -> Iterator[ModelInput]:
    tokenizer = Tokenizer(layout.transformer / "tokenizer.json", layout.card.lowercase)
    tokenizer.prepare_cut(layout.card.max_document_tokens)
    with gzip.open(corpus, "rt", encoding="utf-8") as lines:
        for line in lines:
            item = json.loads(line)
            whole = prepare_document(layout.card, tokenizer, item["title"], item["text"], (0, 0))
            ids = whole.inputs[0].ids
            yield ModelInput(ids, len(ids), np.ones(len(ids), np.bool_))


def main() -> None:
    """Reads a BEIR corpus, writes `linear.weight` float32[dim, hidden]."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoder", help="whose transformer: a built-in name or a folder")
    parser.add_argument("dim", type=int)
    parser.add_argument("corpus", type=Path, help="corpus.jsonl.gz")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    configure_threads(len(os.sched_getaffinity(0)))
    layout = read_layout(find(arguments.encoder, "", hub_downloads=False))
    every_token = dataclasses.replace(layout.card, pooling=Pooling.NONE, dense=())
    layout = Layout(every_token, layout.transformer, ())
    backend = TorchBackend(layout, "cpu", "fp32")
    words = second_moment(backend, layout.card, list(_words(layout)))
    texts = second_moment(backend, layout.card, list(_texts(layout, arguments.corpus)))
    moment = words + _TEXT_SHARE * texts
    directions = principal_directions(moment, arguments.dim)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({"linear.weight": directions}, arguments.out)
    kept = np.square(directions.astype(np.float64) @ moment).sum() / np.square(moment).sum()
    print(f"{arguments.dim} of {layout.card.dim} directions keep {kept:.4f} of the moment")  # noqa: T201


if __name__ == "__main__":
    main()
