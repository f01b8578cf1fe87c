"""Jina embeddings v3 (Sturua et al. 2024, https://arxiv.org/abs/2409.10173): XLM-RoBERTa with rotary positions.

The original checkpoint says ``model_type`` "xlm-roberta", has the names of Jina's own code and carries a low-rank
adapter for each of five tasks. ``lora_task`` chooses one; it is merged while the weights are read. Without it the
weights are those that the adapters start from.

Dimensions: B batch, L tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_bert.encoders import bert, gte, nomic_bert
from mlx_bert.encoders.base import EncoderConfig, NameMap, activation
from mlx_bert.encoders.cpu import by_rows
from mlx_bert.encoders.rotary import Rotary, rope_parameters, rotary

THETA = 20_000.0
ORIGINAL = ".parametrizations.weight.original"
ADAPTER_A, ADAPTER_B = ".parametrizations.weight.0.lora_A", ".parametrizations.weight.0.lora_B"


def merge_adapter(weights: dict[str, mx.array], config: Config) -> dict[str, mx.array]:
    """Replace each parametrised weight by a plain one: ``W + B_t A_t * alpha / rank`` (tables: ``A_t B_t``), lazily.

    Args:
        weights: emptied of what is merged. ``lora_A`` and ``lora_B`` have one matrix for each task ``t``.
        config: its ``lora_task`` is the task, None for ``W`` itself.

    Raises:
        ValueError: a task is chosen but there are no adapters, or an adapter lacks a part.
    """
    stems = [name.removesuffix(ORIGINAL) for name in weights if name.endswith(ORIGINAL)]
    if config.lora_task is not None and not stems:
        raise ValueError(
            f"[jina_v3] expected adapters for lora_task {config.lora_task!r} but the weights have none (merged before: "
            f"{config.merged_lora_task}). Load the original checkpoint, or drop lora_task."
        )
    for stem in stems:
        if lacking := [stem + part for part in (ADAPTER_A, ADAPTER_B) if stem + part not in weights]:
            raise ValueError(f"[checkpoint] missing tensors: {', '.join(lacking)}. The file is incomplete.")
        weight, a, b = (weights.pop(stem + part) for part in (ORIGINAL, ADAPTER_A, ADAPTER_B))
        if config.lora_task is not None:
            task = config.lora_adaptations.index(config.lora_task)
            a, b = a[task].astype(mx.float32), b[task].astype(mx.float32)
            change = a @ b if stem.endswith("_embeddings") else b @ a
            weight = (weight.astype(mx.float32) + change * (config.lora_alpha / config.lora_rank)).astype(weight.dtype)
        weights[f"{stem}.weight"] = weight
    return weights


NAMES = NameMap(
    prefix="roberta.",
    table={
        "embeddings.word": "embeddings.word_embeddings",
        "embeddings.token_type": "embeddings.token_type_embeddings",
        "embeddings.norm": "embeddings.LayerNorm",
        "layers.{n}.attention.qkv": (
            "layers.{n}.self_attn.q_proj",
            "layers.{n}.self_attn.k_proj",
            "layers.{n}.self_attn.v_proj",
        ),
        "layers.{n}.attention.out": "layers.{n}.self_attn.o_proj",
        "layers.{n}.attention_norm": "layers.{n}.post_attention_layernorm",
        "layers.{n}.mlp.up": "layers.{n}.mlp.fc1",
        "layers.{n}.mlp.down": "layers.{n}.mlp.fc2",
        "layers.{n}.mlp_norm": "layers.{n}.post_mlp_layernorm",
        "pooler.dense": "pooler.dense",
    },
    # Jina's own code on the Hub (jinaai/xlm-roberta-flash-implementation).
    older={
        "embeddings.norm": "emb_ln",
        "layers.{n}.attention.qkv": "encoder.layers.{n}.mixer.Wqkv",
        "layers.{n}.attention.out": "encoder.layers.{n}.mixer.out_proj",
        "layers.{n}.attention_norm": "encoder.layers.{n}.norm1",
        "layers.{n}.mlp.up": "encoder.layers.{n}.mlp.fc1",
        "layers.{n}.mlp.down": "encoder.layers.{n}.mlp.fc2",
        "layers.{n}.mlp_norm": "encoder.layers.{n}.norm2",
    },
    prepare=merge_adapter,
)
OUTDATED = (
    *("auto_map", "position_embedding_type", "rotary_emb_base", "rope_theta", "rope_scaling", "use_flash_attn"),
    *("use_reentrant", "load_trained_adapters", "lora_main_params_trainable", "lora_dropout_p", "emb_pooler"),
)


def claims(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` that calls itself XLM-RoBERTa is one of these."""
    return config.get("model_type") == "xlm-roberta" and config.get("position_embedding_type") == "rotary"


@dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """The keys of a ``jina_embeddings_v3`` ``config.json``; defaults are transformers'. Jina's own keys are read too.

    Attributes:
        lora_adaptations: the tasks of the adapters, in their order.
        lora_task: the task to merge while reading; None for no adapter.
        merged_lora_task: the task whose adapter is part of the weights in the file.
    """

    model_type: str = "jina_embeddings_v3"
    vocab_size: int = 250002
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 8194
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-5
    pad_token_id: int | None = 1
    rope_parameters: dict[str, Any] | None = None
    lora_adaptations: list[str] | None = None
    lora_rank: int = 4
    lora_alpha: float = 1.0
    lora_task: str | None = None
    merged_lora_task: str | None = None

    @classmethod
    def modernise(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        theta = config.get("rotary_emb_base") or THETA
        new = {key: value for key, value in config.items() if key not in OUTDATED}
        return {**new, "model_type": "jina_embeddings_v3", "rope_parameters": rope_parameters(config, theta)}

    @property
    def rotary(self) -> Rotary:
        return rotary(self.rope_parameters or {"rope_theta": THETA}, self.model_type)

    def saved(self) -> dict[str, Any]:
        merged = self.lora_task or self.merged_lora_task
        return {**self.to_dict(), "lora_adaptations": None, "lora_task": None, "merged_lora_task": merged}

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.hidden_act)
        self.rotary  # noqa: B018 - raises for what is not supported
        if self.lora_task is not None and self.lora_adaptations and self.lora_task not in self.lora_adaptations:
            raise ValueError(
                f"[jina_v3] expected lora_task to be one of {', '.join(self.lora_adaptations)} but got "
                f"{self.lora_task!r}. None switches the adapters off."
            )


class Layer(nn.Module):
    """Post-norm: ``x = norm(x + attention(x))``, then ``x = norm(x + mlp(x))``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = gte.Attention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = bert.MLP(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def __call__(
        self, x: mx.array, mask: mx.array | None, position_ids: mx.array | None, return_weights: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        attended, weights = self.attention(x, mask, position_ids, return_weights)
        x = self.attention_norm(x + self.dropout(attended))
        return by_rows(lambda x: self.mlp_norm(x + self.dropout(self.mlp(x))), x), weights


class Model(nomic_bert.Model):
    """The encoder; called as :class:`mlx_bert.encoders.nomic_bert.Model` is."""

    def __init__(self, config: Config) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.embeddings = gte.Embeddings(config)
        self.layers = [Layer(config) for _ in range(config.num_hidden_layers)]
        self.pooler = bert.Pooler(config)
