"""Small seeded checkpoints in the layouts that users have, and their direct forward pass."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, BertConfig, BertModel, LlamaConfig, LlamaModel

WORDS = [
    *("the", "of", "a", "in", "and", "to", "is", "fish", "shoal", "water", "cell", "protein"),
    *("gene", "blood", "heart", "study", "effect", "query", "passage", ":", "search", "for"),
    *("deep", "sea", "light", "what", "makes", "sky", "blue", "one", "two", "three", "four"),
    *("five", "six"),
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>"]
MAX_TOKENS = 48


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to write."""

    pooling: str = "mean"
    dense: tuple[str, ...] = ()
    normalize: bool = True
    prompts: dict[str, str] = field(default_factory=dict)
    decoder: bool = False
    plain: bool = False
    seed: int = 0


def write_checkpoint(folder: Path, recipe: Recipe) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, recipe.decoder)
    torch.manual_seed(recipe.seed)
    transformer(recipe.decoder).save_pretrained(folder)
    if recipe.plain:
        return folder
    modules = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": MAX_TOKENS})
    flags = {
        "pooling_mode_cls_token": recipe.pooling == "cls",
        "pooling_mode_mean_tokens": recipe.pooling == "mean",
        "pooling_mode_max_tokens": recipe.pooling == "max",
        "pooling_mode_lasttoken": recipe.pooling == "lasttoken",
    }
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **flags})
    for number, activation in enumerate(recipe.dense, 2):
        write_dense(folder / f"{number}_Dense", activation)
        modules.append("sentence_transformers.models.Dense")
    if recipe.normalize:
        modules.append("sentence_transformers.models.Normalize")
    write_json(
        folder / "modules.json",
        [
            {
                "idx": number,
                "name": str(number),
                "path": f"{number}_{kind.rpartition('.')[2]}" if number else "",
                "type": kind,
            }
            for number, kind in enumerate(modules)
        ],
    )
    words = {"prompts": recipe.prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", words)
    return folder


def transformer(decoder: bool) -> Any:
    size = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    if decoder:
        return LlamaModel(LlamaConfig(**size, num_key_value_heads=2)).eval()
    return BertModel(BertConfig(**size, initializer_range=0.3)).eval()


def write_tokenizer(folder: Path, decoder: bool) -> None:
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if decoder:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
        )
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
        )
    # As published files often do: a service must not inherit either.
    tokenizer.enable_truncation(12)
    tokenizer.enable_padding(length=12)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_dense(folder: Path, activation: str) -> None:
    folder.mkdir()
    layer = torch.nn.Linear(32, 32)
    save_file(
        {"linear.weight": layer.weight, "linear.bias": layer.bias}, folder / "model.safetensors"
    )
    write_json(
        folder / "config.json",
        {
            "in_features": 32,
            "out_features": 32,
            "bias": True,
            "activation_function": f"torch.nn.modules.activation.{activation}",
        },
    )


def write_json(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def direct(folder: Path, recipe: Recipe, text: str) -> NDArray[np.float64]:
    """One text through `transformers`, unpadded; the rest in float64 NumPy."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = torch.tensor([tokenizer.encode(text).ids])
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(folder).eval()(input_ids=ids).last_hidden_state[0]
    rows = hidden.numpy().astype(np.float64)
    pooled = {"mean": rows.mean(axis=0), "cls": rows[0], "lasttoken": rows[-1]}[recipe.pooling]
    for number, activation in enumerate(recipe.dense, 2):
        weights = load_file(folder / f"{number}_Dense" / "model.safetensors")
        linear = weights["linear.weight"].double().numpy() @ pooled
        linear += weights["linear.bias"].double().numpy()
        pooled = {"Tanh": np.tanh, "Identity": lambda x: x}[activation](linear)
    return pooled / np.linalg.norm(pooled) if recipe.normalize else pooled
