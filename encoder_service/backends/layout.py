"""Reads a model folder's description: sentence-transformers layout or plain transformers.

Nothing is executed: module types are matched by name, weights are safetensors.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encoder_service.backends import token_layout
from encoder_service.backends.reference import Source
from encoder_service.backends.token_layout import TokenLayout
from encoder_service.core.card import Card, DenseLayer, Pooling, canonical_json
from shoal.errors import UnsupportedModel
from shoal.types import Similarity

logger = logging.getLogger(__name__)

_POOLING_FLAGS = {
    "pooling_mode_cls_token": Pooling.CLS,
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_lasttoken": Pooling.LAST_TOKEN,
}
_ACTIVATIONS = {"Identity": "identity", "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu"}
_SIMILARITIES = {
    "cosine": Similarity.COSINE,
    "dot": Similarity.DOT,
    "euclidean": Similarity.L2,
}
_ORIGIN_NOTES = {"_name_or_path", "transformers_version", "torch_dtype", "dtype"}
_POSITIONS_AFTER_PADDING = {"roberta", "xlm-roberta", "camembert", "mpnet"}
"""Model types whose first positions are taken by the padding token's."""
_OVERRIDABLE: dict[str, type] = {
    "query_prompt": str,
    "document_prompt": str,
    "max_query_tokens": int,
    "max_document_tokens": int,
    "matryoshka_dims": list,
    "licence": str,
}
_TOKENS_WITHOUT_LIMIT = 512


@dataclass(frozen=True, slots=True)
class Layout:
    """A folder's card and where its parts are.

    Attributes:
        card: the description.
        transformer: folder of the transformer and its tokenizer.
        dense: folders of the layers after pooling, in order.
    """

    card: Card
    transformer: Path
    dense: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class _Modules:
    transformer: Path
    pooling: Pooling
    dense: tuple[Path, ...]
    normalize: bool
    mask: dict[str, Any] = field(default_factory=dict)


def read_layout(source: Source) -> Layout:
    """Describes a folder.

    A `shoal_card.json` in it overrides what the model's own files say of prompts,
    lengths, Matryoshka dims and licence: many published folders leave them out.

    Raises:
        UnsupportedModel: it is not a layout or module that Shoal loads.
    """
    words = _read_json(source.folder / "config_sentence_transformers.json", optional=True)
    kind = str(words.get("model_type", "SentenceTransformer"))
    settings = source.folder / token_layout.STANFORD_SETTINGS
    if settings.is_file():
        modules = _Modules(source.folder, Pooling.NONE, (source.folder,), normalize=True)
    else:
        modules = _read_modules(source, kind)
    config = _read_json(modules.transformer / "config.json")
    bert = _read_json(modules.transformer / "sentence_bert_config.json", optional=True)
    tokens: TokenLayout | None = None
    if settings.is_file():
        stanford = _read_json(settings)
        tokens = token_layout.stanford(stanford)
        dense: tuple[DenseLayer, ...] = (_stanford_projection(source.folder, config, stanford),)
    else:
        dense = tuple(_read_dense(folder) for folder in modules.dense)
    if kind == token_layout.PYLATE:
        tokens = token_layout.pylate(words)
    elif kind == token_layout.SENTENCE_TRANSFORMERS:
        tokens = token_layout.sentence_transformers(bert, modules.mask)
    max_tokens = _max_tokens(modules.transformer, config, bert)
    query_prompt, document_prompt = _prompts(words)
    fields: dict[str, Any] = {
        "weights_sha256": _weights_sha256(modules.transformer),
        "tokenizer_sha256": _sha256(modules.transformer / "tokenizer.json"),
        "config_sha256": _config_sha256(config),
        "architecture": str((config.get("architectures") or [config.get("model_type", "")])[0]),
        "lowercase": bool(bert.get("do_lower_case", False)),
        "pooling": modules.pooling,
        "dense": dense,
        "normalize": modules.normalize,
        "query_prompt": query_prompt,
        "document_prompt": document_prompt,
        "max_query_tokens": min(max_tokens, (tokens and tokens.max_query_tokens) or max_tokens),
        "max_document_tokens": min(
            max_tokens, (tokens and tokens.max_document_tokens) or max_tokens
        ),
        "dim": dense[-1].out_features if dense else _hidden_size(config),
        "matryoshka_dims": (),
        "similarity": _similarity(words, kind),
        "licence": _licence(source.folder),
        "source": source.name,
        "revision": source.revision,
        "tokens": None if tokens is None else tokens.rules,
    }
    fields.update(_overrides(source.folder, max_tokens, fields["dim"]))
    return Layout(Card(**fields), modules.transformer, modules.dense)


def _read_modules(source: Source, kind: str) -> _Modules:
    folder = source.folder
    if not (folder / "modules.json").is_file():
        if not (folder / "config.json").is_file():
            raise UnsupportedModel(f"{folder.name} has neither modules.json nor config.json")
        logger.warning(
            "event=plain_model folder=%s pooling=mean normalize=true "
            "hint=the folder does not say how to pool",
            folder.name,
        )
        return _Modules(folder, Pooling.MEAN, (), True)
    transformer: Path | None = None
    late = kind in {token_layout.PYLATE, token_layout.SENTENCE_TRANSFORMERS}
    pooling = Pooling.NONE if late else None
    dense: list[Path] = []
    normalize = kind == token_layout.PYLATE  # it does so without a module
    mask: dict[str, Any] = {}
    for module in _read_json(folder / "modules.json", kind=list):
        path, named = _inside(folder, str(module.get("path", ""))), str(module.get("type", ""))
        name = named.rpartition(".")[2]
        if name == "Transformer" and transformer is None:
            transformer = source.transformer or path
        elif name == "Pooling" and transformer and pooling is None:
            pooling = _read_pooling(path)
        elif name == "Dense" and transformer and pooling and (late or not normalize):
            dense.append(path)
        elif name == "MultiVectorMask" and late:
            mask = _read_json(path / "config.json")
        elif name == "Normalize" and pooling:
            normalize = True
        else:
            raise UnsupportedModel(
                f"modules.json has {named!r} where Shoal does not take it; it takes Transformer, "
                "Pooling, any Dense, and Normalize, in this order",
                module=named,
            )
    if transformer is None or pooling is None:
        raise UnsupportedModel("modules.json lacks a Transformer or a Pooling module")
    return _Modules(transformer, pooling, tuple(dense), normalize, mask)


def _inside(folder: Path, path: str) -> Path:
    inside = (folder / path).resolve()
    if not inside.is_relative_to(folder.resolve()):
        raise UnsupportedModel(f"modules.json names {path!r}, which is outside of its folder")
    return inside


def _read_pooling(folder: Path) -> Pooling:
    config = _read_json(folder / "config.json")
    if "pooling_mode" in config:
        modes = [config["pooling_mode"]]
        known = {mode.value: mode for mode in Pooling}
    else:
        modes = [name for name, on in config.items() if name.startswith("pooling_mode_") and on]
        known = _POOLING_FLAGS
    if len(modes) != 1 or modes[0] not in known:
        raise UnsupportedModel(
            f"pooling {modes} is not supported: use one of cls, mean and last token",
            module="Pooling",
        )
    if config.get("include_prompt", True) is False:
        raise UnsupportedModel("pooling without the prompt's tokens is not supported")
    return known[modes[0]]


def _read_dense(folder: Path) -> DenseLayer:
    config = _read_json(folder / "config.json")
    activation = str(config.get("activation_function", "")).rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        raise UnsupportedModel(
            f"activation {activation!r} is not one of {', '.join(_ACTIVATIONS)}", module="Dense"
        )
    if config.get("use_residual"):
        raise UnsupportedModel("a Dense layer with a residual is not supported", module="Dense")
    return DenseLayer(
        weights_sha256=_sha256(folder / "model.safetensors"),
        in_features=int(config["in_features"]),
        out_features=int(config["out_features"]),
        bias=bool(config.get("bias", True)),
        activation=_ACTIVATIONS[activation],
    )


def _stanford_projection(
    folder: Path, config: dict[str, Any], settings: dict[str, Any]
) -> DenseLayer:
    """`linear.weight` beside the transformer's own weights."""
    return DenseLayer(
        weights_sha256=_sha256(folder / "model.safetensors"),
        in_features=_hidden_size(config),
        out_features=int(settings.get("dim", 128)),
        bias=False,
        activation="identity",
    )


def _max_tokens(folder: Path, config: dict[str, Any], bert: dict[str, Any]) -> int:
    tokenizer = _read_json(folder / "tokenizer_config.json", optional=True)
    limits = [bert.get("max_seq_length"), config.get("max_position_embeddings")]
    if limits[0] is None:
        limits.append(tokenizer.get("model_max_length"))
    if limits[1] is not None and config.get("model_type") in _POSITIONS_AFTER_PADDING:
        limits[1] -= int(config.get("pad_token_id", 1)) + 1
    # Tokenizers without a limit write a number near 10^30.
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < 1 << 31]
    return min(known, default=_TOKENS_WITHOUT_LIMIT)


def _prompts(words: dict[str, Any]) -> tuple[str, str]:
    prompts = words.get("prompts") or {}
    default = prompts.get(words.get("default_prompt_name") or "", "")

    def first(*names: str) -> str:
        return str(next((prompts[name] for name in names if prompts.get(name)), default))

    return first("query"), first("document", "passage", "corpus")


def _similarity(words: dict[str, Any], kind: str) -> Similarity:
    if kind in {token_layout.PYLATE, token_layout.SENTENCE_TRANSFORMERS}:
        return Similarity.DOT  # MaxSim sums dot products
    if kind != "SentenceTransformer":
        raise UnsupportedModel(f"a {kind} gives no dense vectors")
    name = words.get("similarity_fn_name") or "cosine"
    if name not in _SIMILARITIES:
        raise UnsupportedModel(f"similarity {name!r} is not one of {', '.join(_SIMILARITIES)}")
    return _SIMILARITIES[name]


def _hidden_size(config: dict[str, Any]) -> int:
    size = config.get("hidden_size", config.get("dim", config.get("d_model")))
    if not isinstance(size, int):
        raise UnsupportedModel("config.json has no hidden_size")
    return size


def _licence(folder: Path) -> str:
    readme = folder / "README.md"
    if not readme.is_file():
        return ""
    front = readme.read_text(errors="replace").split("\n---", 1)[0]
    found = re.search(r"^license:\s*(\S+)\s*$", front, re.MULTILINE)
    return found[1] if found else ""


def _overrides(folder: Path, max_tokens: int, dim: int) -> dict[str, Any]:
    given: dict[str, Any] = _read_json(folder / "shoal_card.json", optional=True)
    for name, value in given.items():
        if type(value) is not _OVERRIDABLE.get(name):
            raise UnsupportedModel(
                f"shoal_card.json sets {name!r} to {value!r}; it may set "
                + ", ".join(f"{known} ({kind.__name__})" for known, kind in _OVERRIDABLE.items())
            )
        if name.startswith("max_") and value not in range(1, max_tokens + 1):
            raise UnsupportedModel(f"shoal_card.json: {name} is not in 1..{max_tokens}")
    if "matryoshka_dims" in given:
        dims = sorted(set(given["matryoshka_dims"]))
        if not all(type(size) is int and 1 <= size < dim for size in dims):
            raise UnsupportedModel(f"shoal_card.json: matryoshka_dims are not in 1..{dim - 1}")
        given["matryoshka_dims"] = tuple(dims)
    return given


def _read_json(file: Path, *, optional: bool = False, kind: type = dict) -> Any:
    if optional and not file.is_file():
        return kind()
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{_short(file)} cannot be read: {error}") from error
    if not isinstance(value, kind):
        raise UnsupportedModel(f"{_short(file)} is no JSON {kind.__name__}")
    return value


def _config_sha256(config: dict[str, Any]) -> str:
    kept = {name: value for name, value in config.items() if name not in _ORIGIN_NOTES}
    return hashlib.sha256(canonical_json(kept).encode()).hexdigest()


def _weights_sha256(folder: Path) -> str:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return _sha256(single)
    names: Iterable[str] = sorted(set(_read_json(index).get("weight_map", {}).values()))
    hashes = {name: _sha256(_inside(folder, name)) for name in names}
    return hashlib.sha256(canonical_json(hashes).encode()).hexdigest()


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        hint = (
            "only safetensors weights are loaded"
            if file.suffix == ".safetensors"
            else "save the model with a fast tokenizer"
        )
        raise UnsupportedModel(f"{_short(file)} cannot be read; {hint}", file=file.name) from error


def _short(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"
