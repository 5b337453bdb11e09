"""Model folders as users have them, against a direct forward pass.

No sockets here: it stands beside the wire tests because it loads torch, which
alone takes longer than all unit tests may.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoder_service.backends.layout import read_layout
from encoder_service.backends.port import ModelInput
from encoder_service.backends.reference import Source, find
from encoder_service.core.batching import padded_length
from encoder_service.core.card import Pooling, fingerprint
from encoder_service.core.vectors import finish
from encoder_service.golden.__main__ import main as write_golden
from encoder_service.models import Model, check, load
from encoder_service.prepare import prepare_document, prepare_query
from encoder_service.settings import EncoderSettings
from shoal.errors import EncoderDrift, EncoderNotFound, FingerprintMismatch, UnsupportedModel
from tests.unit.encoder_service.checkpoints import (
    MAX_TOKENS,
    Recipe,
    direct,
    write_checkpoint,
    write_json,
)

pytestmark = pytest.mark.slow  # loads torch and transformers

SETTINGS = EncoderSettings(hub_downloads=False)
TEXTS = [
    "what makes the sky blue",
    "the shoal is in the deep sea and the light of the water is blue",
    "fish",
    "one two three four five six",
]
RECIPES = {
    "mean": Recipe(pooling="mean"),
    "cls": Recipe(pooling="cls"),
    "last token": Recipe(pooling="lasttoken", decoder=True),
    "dense": Recipe(pooling="cls", dense=("Tanh",)),
    "two dense": Recipe(pooling="mean", dense=("Identity", "Tanh")),
    "not normalised": Recipe(pooling="mean", normalize=False),
    "plain folder": Recipe(plain=True),
    "prompts": Recipe(prompts={"query": "query : ", "passage": "passage : "}),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def load_model(folder: Path, expected: str = "") -> Model:
    return load(str(folder), expected, SETTINGS, ("cpu", "fp32"))


def encode(model: Model, texts: list[ModelInput]) -> Any:
    length = max(padded_length(len(text.ids), model.card.max_tokens) for text in texts)
    rows = np.concatenate(model.backend.encode(texts, length))
    return finish(rows, model.card.dim, model.card.normalize)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_vectors_equal_a_direct_forward_pass(tmp_path: Path, recipe: Recipe) -> None:
    folder = write_checkpoint(tmp_path / "model", recipe)
    model = load_model(folder)
    queries = [prepare_query(model.card, model.tokenizer, text, False).input for text in TEXTS]
    documents = [
        prepare_document(model.card, model.tokenizer, "", text, (0, 0)).inputs[0] for text in TEXTS
    ]
    for side, ids in (("query", queries), ("passage", documents)):
        prompt = recipe.prompts.get(side, "")
        expected = np.stack([direct(folder, recipe, prompt + text) for text in TEXTS])
        np.testing.assert_allclose(encode(model, ids), expected, atol=2e-6)


def test_what_stands_in_the_files_stands_in_the_card(tmp_path: Path) -> None:
    recipe = Recipe(pooling="lasttoken", decoder=True, prompts={"query": "query : "})
    folder = write_checkpoint(tmp_path / "model", recipe)
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# A model\n")
    card = read_layout(Source(folder, "model")).card
    assert card.pooling is Pooling.LAST_TOKEN
    assert (card.query_prompt, card.document_prompt) == ("query : ", "")
    assert (card.max_query_tokens, card.dim, card.licence) == (MAX_TOKENS, 32, "mit")
    assert card.architecture == "LlamaModel"


def test_the_newer_name_of_pooling_and_lower_casing(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", Recipe())
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": "cls"})
    write_json(folder / "sentence_bert_config.json", {"do_lower_case": True})
    card = read_layout(Source(folder, "model")).card
    assert (card.pooling, card.lowercase) == (Pooling.CLS, True)
    assert card.max_query_tokens == 64, "the model's positions bound it where nothing else does"


def test_a_card_file_adds_what_the_folder_leaves_out(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", Recipe())
    before = read_layout(Source(folder, "model")).card
    write_json(
        folder / "shoal_card.json",
        {"query_prompt": "query : ", "max_query_tokens": 16, "matryoshka_dims": [16, 8]},
    )
    after = read_layout(Source(folder, "model")).card
    assert (after.query_prompt, after.max_query_tokens) == ("query : ", 16)
    assert after.matryoshka_dims == (8, 16)
    assert fingerprint(after) != fingerprint(before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"pooling": "cls"},
        {"query_prompt": 3},
        {"max_query_tokens": 10_000},
        {"matryoshka_dims": [32]},
    ],
)
def test_a_card_file_with_nonsense_is_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    folder = write_checkpoint(tmp_path / "model", Recipe())
    write_json(folder / "shoal_card.json", wrong)
    with pytest.raises(UnsupportedModel, match="shoal_card"):
        read_layout(Source(folder, "model"))


def damage_module(folder: Path, kind: str) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = kind
    write_json(folder / "modules.json", modules)


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def outside(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "../elsewhere"
    write_json(folder / "modules.json", modules)


def remote_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoModel": "modeling_homemade.Model"}}
    write_json(folder / "config.json", config)
    (folder / "modeling_homemade.py").write_text("raise SystemExit('remote code ran')")


def deeper_than_its_weights(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"num_hidden_layers": 3})


DAMAGE: dict[str, Any] = {
    "unknown module": lambda folder: damage_module(folder, "modeling_x.WordWeights"),
    "no pooling": lambda folder: damage_module(folder, "sentence_transformers.models.Normalize"),
    "pickled weights": only_pickle,
    "no fast tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "broken tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "broken json": lambda folder: (folder / "modules.json").write_text("["),
    "path outside": outside,
    "remote code": remote_code,
    "missing weights": deeper_than_its_weights,
    "max pooling": lambda folder: write_json(
        folder / "1_Pooling" / "config.json", {"pooling_mode_max_tokens": True}
    ),
    "two poolings": lambda folder: write_json(
        folder / "1_Pooling" / "config.json",
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
    ),
    "prompt left out of pooling": lambda folder: write_json(
        folder / "1_Pooling" / "config.json", {"pooling_mode": "mean", "include_prompt": False}
    ),
    "late interaction": lambda folder: write_json(
        folder / "config_sentence_transformers.json", {"model_type": "ColBERT"}
    ),
    "unknown activation": lambda folder: write_json(
        folder / "2_Dense" / "config.json",
        {"in_features": 32, "out_features": 32, "activation_function": "x.Softmax"},
    ),
    "another dense shape": lambda folder: write_json(
        folder / "2_Dense" / "config.json",
        {"in_features": 32, "out_features": 16, "activation_function": "x.Tanh"},
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_shoal_does_not_load_is_refused(tmp_path: Path, damage: Any) -> None:
    folder = write_checkpoint(tmp_path / "model", Recipe(dense=("Tanh",)))
    load_model(folder)
    damage(folder)
    with pytest.raises(UnsupportedModel):
        load_model(folder)


def test_the_fingerprint_follows_the_weights_and_not_the_folder(tmp_path: Path) -> None:
    one = load_model(write_checkpoint(tmp_path / "one", Recipe()))
    same = load_model(write_checkpoint(tmp_path / "same", Recipe()))
    other = load_model(write_checkpoint(tmp_path / "other", Recipe(seed=1)))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    with pytest.raises(FingerprintMismatch):
        load_model(tmp_path / "other", expected=one.fingerprint)


def test_golden_texts_pass_on_their_model_and_fail_on_drift(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", Recipe(prompts={"query": "query : "}))
    assert check(load_model(folder), SETTINGS).golden_texts == 0
    golden = io.StringIO()
    write_golden(str(folder), io.StringIO("query\twhat is blue\ndocument\tthe sea is\n"), golden)
    (folder / "shoal_golden.json").write_text(golden.getvalue())
    checked = check(load_model(folder), SETTINGS)
    assert checked.golden_texts == 2
    assert checked.golden_drift < 1e-9
    assert checked.batch_drift == 0.0
    promised = json.loads(golden.getvalue())
    promised["golden"][1]["vector"][0] += 0.01
    write_json(folder / "shoal_golden.json", promised)
    with pytest.raises(EncoderDrift, match="golden"):
        check(load_model(folder), SETTINGS)
    promised["fingerprint"] = "0" * 64
    write_json(folder / "shoal_golden.json", promised)
    with pytest.raises(EncoderDrift, match="fingerprint"):
        check(load_model(folder), SETTINGS)


def test_a_text_that_moves_with_its_batch_mates_is_drift(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(write_checkpoint(tmp_path / "model", Recipe()))
    honest = type(model.backend).encode

    def leaky(backend: Any, texts: Any, length: int) -> Any:
        return honest(backend, texts, length) + np.float32(0.1 * (len(texts) > 1))

    monkeypatch.setattr(type(model.backend), "encode", leaky)
    with pytest.raises(EncoderDrift, match="among others"):
        check(model, SETTINGS)


def test_references(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", Recipe())
    assert find(str(folder), "", False) == Source(folder, "model")
    assert find("all-minilm-l6-v2", "", False).built_in
    for wrong in ("", "no/such/folder", "org/model", "org/model@main", "org/model@" + "a" * 39):
        with pytest.raises(EncoderNotFound):
            find(wrong, str(tmp_path), False)


def test_a_pinned_hub_model_comes_from_the_cache(tmp_path: Path) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    write_checkpoint(tmp_path / "models--org--model" / "snapshots" / revision, Recipe())
    source = find(f"org/model@{revision}", str(tmp_path), False)
    assert (source.name, source.revision) == ("org/model", revision)
    assert read_layout(source).card.revision == revision
    with pytest.raises(EncoderNotFound, match="cache"):
        find("org/model@" + "b" * 40, str(tmp_path), False)
