"""Runs a model with PyTorch, on a CPU or one GPU."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from encoder_service.backends.layout import Layout
from encoder_service.backends.port import ModelInput
from encoder_service.core.card import DenseLayer, Pooling
from shoal.errors import UnsupportedModel
from shoal.types import Float32Matrix

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda tensor: tensor,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
}
_threads_lock = threading.Lock()


def configure_threads(threads: int) -> None:
    """Sets this process's torch threads: `threads` for one operation, one between them."""
    with _threads_lock:
        torch.set_num_threads(threads)
        if torch.get_num_interop_threads() != 1:
            torch.set_num_interop_threads(1)


def choose_device(device: str) -> str:
    """Turns "auto" into "cuda:0" where there is a GPU, else "cpu".

    Raises:
        ValueError: torch knows no such device, or it is not there.
    """
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is none of auto, cpu, cuda, cuda:N") from error
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is none of auto, cpu, cuda, cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r}: this process sees {torch.cuda.device_count()} GPUs")
    return f"cuda:{chosen.index or 0}" if chosen.type == "cuda" else "cpu"


def choose_precision(precision: str, device: str) -> str:
    """Turns "auto" into fp16 on a GPU and fp32 on a CPU.

    Raises:
        ValueError: no such precision, or fp16 on a CPU.
    """
    if precision == "auto":
        return "fp32" if device == "cpu" else "fp16"
    if precision not in _DTYPES or (precision == "fp16" and device == "cpu"):
        raise ValueError(f"precision {precision!r} is not available on {device}")
    return precision


class TorchBackend:
    """One model on one device.

    Args:
        layout: the folder's description.
        device: "cpu" or "cuda:N".
        precision: of the transformer; pooling and Dense layers always run in fp32.

    Raises:
        UnsupportedModel: `transformers` has no such class, the weights are not
            safetensors, or some are missing.
    """

    def __init__(self, layout: Layout, device: str, precision: str) -> None:
        self.device = device
        self.precision = precision
        self._pooling = layout.card.pooling
        self._model = _load_transformer(layout, _DTYPES[precision]).to(device)
        self._pad_id = int(getattr(self._model.config, "pad_token_id", None) or 0)
        self._dense = [
            _Dense(layer, load_file(folder / "model.safetensors"), device)
            for layer, folder in zip(layout.card.dense, layout.dense, strict=True)
        ]

    def encode(self, texts: Sequence[ModelInput], length: int) -> list[Float32Matrix]:
        """See `Backend.encode`."""
        ids = np.full((len(texts), length), self._pad_id, np.int64)
        mask = np.zeros((len(texts), length), np.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text.ids)] = text.ids
            mask[row, : text.attended] = 1
        with torch.inference_mode():
            on_device = torch.from_numpy(mask).to(self.device)
            hidden = self._model(
                input_ids=torch.from_numpy(ids).to(self.device), attention_mask=on_device
            ).last_hidden_state
            vectors = _pool(hidden.float(), on_device, self._pooling)
            for layer in self._dense:
                vectors = layer(vectors)
            rows: Float32Matrix = vectors.cpu().numpy()
        if self._pooling is not Pooling.NONE:
            return list(rows[:, np.newaxis])
        return [
            of_text[: len(text.ids)][text.kept] for of_text, text in zip(rows, texts, strict=True)
        ]


def _pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """float32[n, length, dim] to [n, dim], or as it is; texts are padded on the right."""
    if pooling is Pooling.NONE:
        return hidden
    if pooling is Pooling.CLS:
        return hidden[:, 0]
    if pooling is Pooling.LAST_TOKEN:
        rows = torch.arange(len(hidden), device=hidden.device)
        return hidden[rows, mask.sum(dim=1) - 1]
    weights = mask.unsqueeze(-1).float()
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


class _Dense:
    def __init__(self, layer: DenseLayer, weights: dict[str, torch.Tensor], device: str) -> None:
        shape = (layer.out_features, layer.in_features)
        names = {"linear.weight", "linear.bias"} if layer.bias else {"linear.weight"}
        # Stanford ColBERT keeps its projection among the transformer's weights.
        if not names <= set(weights) or tuple(weights["linear.weight"].shape) != shape:
            raise UnsupportedModel(f"a Dense layer's weights are not {sorted(names)} of {shape}")
        self._weight = weights["linear.weight"].float().to(device)
        self._bias = weights["linear.bias"].float().to(device) if layer.bias else None
        self._activation = _ACTIVATIONS[layer.activation]

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        return self._activation(torch.nn.functional.linear(vectors, self._weight, self._bias))


def _load_transformer(layout: Layout, dtype: torch.dtype) -> Any:
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model, report = AutoModel.from_pretrained(
            layout.transformer,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise UnsupportedModel(
            f"transformers cannot load {layout.card.source}: {error}", encoder=layout.card.source
        ) from error
    # Poolers are heads that retrieval does not use; anything else missing would be random.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing or report["mismatched_keys"]:
        raise UnsupportedModel(
            f"the weights of {layout.card.source} lack {missing[:3] or 'matching shapes'}",
            encoder=layout.card.source,
        )
    return model.eval()
