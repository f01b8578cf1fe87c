"""BERT (Devlin et al. 2018, https://arxiv.org/abs/1810.04805): post-norm Transformer encoder with learned positions.

Dimensions: B batch, L tokens, D hidden size, H attention heads, d = D / H.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_bert.encoders.base import (
    EncoderConfig,
    EncoderOutput,
    NameMap,
    activation,
    attend,
    check_inputs,
    key_padding_mask,
)
from mlx_bert.encoders.cpu import by_rows

TABLE = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "layers.{n}.attention.qkv": (
        "encoder.layer.{n}.attention.self.query",
        "encoder.layer.{n}.attention.self.key",
        "encoder.layer.{n}.attention.self.value",
    ),
    "layers.{n}.attention.out": "encoder.layer.{n}.attention.output.dense",
    "layers.{n}.attention_norm": "encoder.layer.{n}.attention.output.LayerNorm",
    "layers.{n}.mlp.up": "encoder.layer.{n}.intermediate.dense",
    "layers.{n}.mlp.down": "encoder.layer.{n}.output.dense",
    "layers.{n}.mlp_norm": "encoder.layer.{n}.output.LayerNorm",
    "pooler.dense": "pooler.dense",
}
NAMES = NameMap(prefix="bert.", table=TABLE)


@dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """The keys of a BERT ``config.json``; defaults are bert-base-uncased's."""

    model_type: str = "bert"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    position_embedding_type: str = "absolute"
    is_decoder: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("position_embedding_type", "absolute")
        self.require("is_decoder", False)
        activation(self.hidden_act)


class Embeddings(nn.Module):
    """``LayerNorm(word + token type + position)``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.num_segments = config.type_vocab_size
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def __call__(self, input_ids: mx.array, token_type_ids: mx.array | None, position_ids: mx.array | None) -> mx.array:
        if token_type_ids is None or self.num_segments == 1:
            token_type_ids = mx.zeros((1, 1), dtype=mx.int32)
        if position_ids is None:
            position_ids = mx.arange(input_ids.shape[1])[None]
        embeddings = self.word(input_ids) + self.token_type(token_type_ids) + self.position(position_ids)
        return self.dropout(self.norm(embeddings))


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for q, k and v."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def __call__(self, x: mx.array, mask: mx.array | None, return_weights: bool) -> tuple[mx.array, mx.array | None]:
        B, L, _ = x.shape
        q, k, v = by_rows(self.qkv, x).reshape(B, L, 3, self.num_heads, -1).transpose(2, 0, 3, 1, 4)
        dropout = self.dropout_prob if self.training else 0.0
        x, weights = attend(q, k, v, mask, dropout, return_weights)
        return by_rows(self.out, x), weights


class MLP(nn.Module):
    """``down(act(up(x)))``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self._act = activation(config.hidden_act)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down(self._act(self.up(x)))


class Layer(nn.Module):
    """Post-norm: ``x = norm(x + attention(x))``, then ``x = norm(x + mlp(x))``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def __call__(
        self, x: mx.array, mask: mx.array | None, return_weights: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        attended, weights = self.attention(x, mask, return_weights)
        x = self.attention_norm(x + self.dropout(attended))
        return by_rows(lambda x: self.mlp_norm(x + self.dropout(self.mlp(x))), x), weights


class Pooler(nn.Module):
    """``tanh(W h_0 + b)``, trained with next-sentence prediction."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def __call__(self, first_state: mx.array) -> mx.array:
        return mx.tanh(self.dense(first_state))


class Model(nn.Module):
    """The encoder. ``pooler`` takes the first token's state ``(B, D)``; None if the checkpoint has none."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = [Layer(config) for _ in range(config.num_hidden_layers)]
        self.pooler = Pooler(config)

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
            token_type_ids: segment of each token ``(B, L)``; None for zeros.
            position_ids: ``(B, L)`` or ``(1, L)``; None for 0, 1, 2, ...
        """
        check_inputs(self.config, input_ids, attention_mask)
        mask = key_padding_mask(attention_mask)
        x = self.embeddings(input_ids, token_type_ids, position_ids)
        hidden_states, attentions = [x], []
        for layer in self.layers:
            x, weights = layer(x, mask, output_attentions)
            hidden_states.append(x)
            attentions.append(weights)
        return EncoderOutput(
            x, hidden_states if output_hidden_states else None, attentions if output_attentions else None
        )
