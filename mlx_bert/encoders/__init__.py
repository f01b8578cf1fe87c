"""Encoders: token ids and a mask in, hidden states out. One architecture, one file."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from mlx_bert.encoders import (
    albert,
    bert,
    cnn_hybrid,
    compact,
    deberta_v2,
    distilbert,
    electra,
    eurobert,
    gemma3_text,
    gte,
    jina_bert,
    jina_v3,
    mlx_lm,
    modernbert,
    mpnet,
    nomic_bert,
    roberta,
)

# model_type of config.json -> the file that implements it: Config, Model, NAMES.
ENCODERS: dict[str, ModuleType] = {
    "albert": albert,
    "bert": bert,
    "camembert": roberta,
    "cnn_hybrid": cnn_hybrid,
    "compact": compact,
    "deberta-v2": deberta_v2,
    "distilbert": distilbert,
    "electra": electra,
    "eurobert": eurobert,
    "gemma3_text": gemma3_text,
    "gte": gte,
    "jina_bert": jina_bert,
    "jina_embeddings_v3": jina_v3,
    "mlx_lm": mlx_lm,
    "modernbert": modernbert,
    "mpnet": mpnet,
    "new": gte,
    "nomic_bert": nomic_bert,
    "roberta": roberta,
    "xlm-roberta": roberta,
}


# Files whose checkpoints carry another architecture's model_type; their own keys tell.
CLAIMANTS: tuple[ModuleType, ...] = (jina_bert, jina_v3)


def find_encoder(config: Mapping[str, Any]) -> ModuleType:
    """The architecture's file for a parsed ``config.json``.

    Raises:
        ValueError: ``model_type`` is missing or not supported.
    """
    for module in CLAIMANTS:
        if module.claims(config):
            return module
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ENCODERS:
        raise ValueError(
            f"[encoders] model_type {model_type!r} is not supported. Supported: {', '.join(sorted(ENCODERS))}."
        )
    return ENCODERS[model_type]
