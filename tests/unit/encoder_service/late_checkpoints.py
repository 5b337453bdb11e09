"""Small seeded late-interaction checkpoints in three layouts, and their direct forward pass."""

import json
import string
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from tests.unit.encoder_service.checkpoints import WORDS, write_json

HIDDEN, DIM = 32, 16
LAYOUTS = ("pylate", "sentence-transformers", "stanford")
MARKERS = {
    "pylate": ("[Q] ", "[D] "),
    "sentence-transformers": ("", ""),
    "stanford": ("[unused0]", "[unused1]"),
}
QUERY_LENGTH, DOCUMENT_LENGTH = 12, 24
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]", "[Q] ", "[D] "]


def write_late(folder: Path, layout: str, *, attend: bool = False) -> Path:
    """Writes a checkpoint; its weights are the same in every layout."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_tokenizer(folder)
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
        initializer_range=0.3,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    projection = torch.nn.Linear(HIDDEN, DIM, bias=False).weight.detach().contiguous()
    model.save_pretrained(folder)
    if layout == "stanford":
        _write_stanford(folder, model, projection, attend)
    else:
        _write_modules(folder, layout, projection, attend)
    return folder


def _write_stanford(folder: Path, model: BertModel, projection: torch.Tensor, attend: bool) -> None:
    weights = {f"bert.{name}": tensor for name, tensor in model.state_dict().items()}
    save_file(
        {
            **{name: tensor.contiguous() for name, tensor in weights.items()},
            "linear.weight": projection,
        },
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "architectures": ["HF_ColBERT"]})
    write_json(
        folder / "artifact.metadata",
        {
            "dim": DIM,
            "query_maxlen": QUERY_LENGTH,
            "doc_maxlen": DOCUMENT_LENGTH,
            "query_token_id": "[unused0]",
            "doc_token_id": "[unused1]",
            "attend_to_mask_tokens": attend,
            "mask_punctuation": True,
            "similarity": "cosine",
        },
    )


def _write_modules(folder: Path, layout: str, projection: torch.Tensor, attend: bool) -> None:
    dense = folder / "1_Dense"
    dense.mkdir()
    save_file({"linear.weight": projection}, dense / "model.safetensors")
    write_json(
        dense / "config.json",
        {
            "in_features": HIDDEN,
            "out_features": DIM,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    if layout == "pylate":
        kinds = ["sentence_transformers.models.Transformer", "pylate.models.Dense.Dense"]
        words = {
            "model_type": "ColBERT",
            "query_prefix": "[Q] ",
            "document_prefix": "[D] ",
            "query_length": QUERY_LENGTH,
            "document_length": DOCUMENT_LENGTH,
            "do_query_expansion": True,
            "attend_to_expansion_tokens": attend,
            "similarity_fn_name": "MaxSim",
        }
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": 48})
    else:
        base = "sentence_transformers.base.modules"
        kinds = [
            f"{base}.transformer.Transformer",
            f"{base}.dense.Dense",
            "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask",
            "sentence_transformers.sentence_transformer.modules.normalize.Normalize",
        ]
        words = {
            "model_type": "MultiVectorEncoder",
            "prompts": {"query": "query : ", "document": "passage : "},
            "default_prompt_name": None,
            "similarity_fn_name": "MaxSim",
        }
        write_json(
            folder / "sentence_bert_config.json",
            {
                "max_seq_length": 48,
                "document_length": DOCUMENT_LENGTH,
                "query_expansion": {"strategy": "min", "length": QUERY_LENGTH, "attend": attend},
            },
        )
        write_json(folder / "2_MultiVectorMask" / "config.json", {"skiplist_words": [".", ","]})
    write_json(folder / "config_sentence_transformers.json", words)
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{kind.rpartition('.')[2]}" if number else "",
            "type": kind,
        }
        for number, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)


def _write_tokenizer(folder: Path) -> dict[str, int]:
    words = [*SPECIAL, *dict.fromkeys([*WORDS, *string.punctuation])]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(word, normalized=False) for word in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return vocabulary


def direct(
    folder: Path, layout: str, side: str, text: str, *, attend: bool = False
) -> NDArray[np.float64]:
    """[rows, DIM]: one text through the transformer, unpadded, by the rules of its layout."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if layout == "sentence-transformers":
        text = {"query": "query : ", "document": "passage : "}[side] + text
    ids = tokenizer.encode(text).ids
    marker = MARKERS[layout][side == "document"]
    if marker:
        ids = [ids[0], tokenizer.token_to_id(marker), *ids[1:]]
    seen = len(ids)
    if side == "query" and len(ids) < QUERY_LENGTH:
        ids += [tokenizer.token_to_id("[MASK]")] * (QUERY_LENGTH - len(ids))
        seen = len(ids) if attend else seen
    mask = [1] * seen + [0] * (len(ids) - seen)
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.inference_mode():
        hidden = model(
            input_ids=torch.tensor([ids]), attention_mask=torch.tensor([mask])
        ).last_hidden_state[0]
    rows = hidden.double().numpy()
    place = folder if layout == "stanford" else folder / "1_Dense"
    rows = rows @ load_file(place / "model.safetensors")["linear.weight"].double().numpy().T
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if side == "query":
        return rows
    skip = {".", ","} if layout == "sentence-transformers" else set(string.punctuation)
    dropped = {tokenizer.token_to_id(word) for word in skip}
    return rows[[number not in dropped for number in ids]]
