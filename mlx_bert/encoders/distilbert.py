"""DistilBERT (Sanh et al. 2019, https://arxiv.org/abs/1910.01108): half of BERT's layers, no segments, no pooler.

Dimensions: B batch, L tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import mlx.core as mx
import mlx.nn as nn

from mlx_bert.encoders.base import (
    EncoderConfig,
    EncoderOutput,
    NameMap,
    activation,
    check_inputs,
    key_padding_mask,
)
from mlx_bert.encoders.bert import MLP, Attention

NAMES = NameMap(
    prefix="distilbert.",
    table={
        "embeddings.word": "embeddings.word_embeddings",
        "embeddings.position": "embeddings.position_embeddings",
        "embeddings.norm": "embeddings.LayerNorm",
        "layers.{n}.attention.qkv": (
            "transformer.layer.{n}.attention.q_lin",
            "transformer.layer.{n}.attention.k_lin",
            "transformer.layer.{n}.attention.v_lin",
        ),
        "layers.{n}.attention.out": "transformer.layer.{n}.attention.out_lin",
        "layers.{n}.attention_norm": "transformer.layer.{n}.sa_layer_norm",
        "layers.{n}.mlp.up": "transformer.layer.{n}.ffn.lin1",
        "layers.{n}.mlp.down": "transformer.layer.{n}.ffn.lin2",
        "layers.{n}.mlp_norm": "transformer.layer.{n}.output_layer_norm",
    },
)

# The names that all configs here have -> what a DistilBERT config.json calls them (transformers takes both).
KEYS = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}


@dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """The keys of a DistilBERT ``config.json``, but for ``KEYS``; defaults are distilbert-base-uncased's.

    ``sinusoidal_pos_embds`` says how the position table starts; a checkpoint holds the table in either case.
    """

    model_type: str = "distilbert"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    hidden_dim: int = 3072
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    max_position_embeddings: int = 512
    sinusoidal_pos_embds: bool = False
    pad_token_id: int | None = 0
    layer_norm_eps: ClassVar[float] = 1e-12

    @classmethod
    def modernise(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        given = {theirs: config[ours] for ours, theirs in KEYS.items() if ours in config}
        return {**{key: value for key, value in config.items() if key not in KEYS}, **given}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        config = cls.modernise(config)
        values = {field.name: config.get(KEYS.get(field.name, field.name), field.default) for field in fields(cls)}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return {KEYS.get(name, name): value for name, value in super().to_dict().items()}

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.activation)

    # As BERT's modules ask for them.
    @property
    def intermediate_size(self) -> int:
        return self.hidden_dim

    @property
    def hidden_act(self) -> str:
        return self.activation

    @property
    def attention_probs_dropout_prob(self) -> float:
        return self.attention_dropout


def sinusoidal_positions(count: int, size: int) -> mx.array:
    """The fixed table ``(count, size)`` of Vaswani et al. 2017: sines in even columns, cosines in odd ones."""
    pairs = mx.arange(0, size, 2, dtype=mx.float32)
    angles = mx.arange(count, dtype=mx.float32)[:, None] * 10_000 ** (-pairs / size)
    return mx.stack([mx.sin(angles), mx.cos(angles)], axis=-1).reshape(count, -1)[:, :size]


class Embeddings(nn.Module):
    """``LayerNorm(word + position)``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        if config.sinusoidal_pos_embds:
            self.position.weight = sinusoidal_positions(config.max_position_embeddings, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def __call__(self, input_ids: mx.array, position_ids: mx.array | None) -> mx.array:
        if position_ids is None:
            position_ids = mx.arange(input_ids.shape[1])[None]
        return self.dropout(self.norm(self.word(input_ids) + self.position(position_ids)))


class Layer(nn.Module):
    """BERT's layer but for the dropout on the attention's output, which DistilBERT does not have."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def __call__(
        self, x: mx.array, mask: mx.array | None, return_weights: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        attended, weights = self.attention(x, mask, return_weights)
        x = self.attention_norm(x + attended)
        return self.mlp_norm(x + self.dropout(self.mlp(x))), weights


class Model(nn.Module):
    """The encoder. DistilBERT has no pooler; its classifiers bring their own dense layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = [Layer(config) for _ in range(config.num_hidden_layers)]

    def __call__(
        self,
        input_ids: mx.array,
        attention_mask: mx.array | None = None,
        token_type_ids: mx.array | None = None,
        position_ids: mx.array | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """Encode token ids.

        Args:
            input_ids: integers ``(B, L)``.
            attention_mask: ``(B, L)``, 1 for real tokens; None when nothing is padded.
            token_type_ids: not used: DistilBERT has no segments.
            position_ids: ``(B, L)`` or ``(1, L)``; None for 0, 1, 2, ...
        """
        check_inputs(self.config, input_ids, attention_mask)
        mask = key_padding_mask(attention_mask)
        x = self.embeddings(input_ids, position_ids)
        hidden_states, attentions = [x], []
        for layer in self.layers:
            x, weights = layer(x, mask, output_attentions)
            hidden_states.append(x)
            attentions.append(weights)
        return EncoderOutput(
            x, hidden_states if output_hidden_states else None, attentions if output_attentions else None
        )
