"""Jina BERT v2 (Günther et al. 2023, https://arxiv.org/abs/2310.19923): jina-embeddings-v2-*, jina-reranker-v1-*.

Post-norm BERT with linear attention biases (ALiBi) for positions and a gated MLP. Checkpoints say ``model_type``
"bert" and ``position_embedding_type`` "alibi". There are two sorts: that of jinaai/jina-bert-implementation, and that
of jinaai/jina-bert-v2-qk-post-norm (the code model), which also normalises queries and keys and adds the input twice.

Dimensions: B batch, L tokens, D hidden size, H attention heads, d = D / H.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_bert.encoders import bert, nomic_bert
from mlx_bert.encoders.base import (
    EncoderOutput,
    NameMap,
    activation,
    attend,
    check_inputs,
    key_padding_mask,
    masked_bias,
)
from mlx_bert.encoders.cpu import by_rows

GATES = {"geglu": "gelu", "reglu": "relu"}

NAMES = NameMap(
    prefix="bert.",
    table={
        "embeddings.word": "embeddings.word_embeddings",
        "embeddings.token_type": "embeddings.token_type_embeddings",
        "embeddings.norm": "embeddings.LayerNorm",
        "layers.{n}.attention.qkv": (
            "encoder.layer.{n}.attention.self.query",
            "encoder.layer.{n}.attention.self.key",
            "encoder.layer.{n}.attention.self.value",
        ),
        "layers.{n}.attention.out": "encoder.layer.{n}.attention.output.dense",
        "layers.{n}.attention_norm": "encoder.layer.{n}.attention.output.LayerNorm",
        "layers.{n}.mlp.gate_up": "encoder.layer.{n}.mlp.gated_layers",
        "layers.{n}.mlp.down": "encoder.layer.{n}.mlp.wo",
        "layers.{n}.mlp_norm": "encoder.layer.{n}.mlp.layernorm",
        # With qk_post_norm:
        "layers.{n}.attention.query_norm": "encoder.layer.{n}.attention.self.layer_norm_q",
        "layers.{n}.attention.key_norm": "encoder.layer.{n}.attention.self.layer_norm_k",
        "layers.{n}.norm_1": "encoder.layer.{n}.layer_norm_1",
        "layers.{n}.mlp.up_gate": "encoder.layer.{n}.mlp.up_gated_layer",
        "layers.{n}.mlp.out": "encoder.layer.{n}.mlp.down_layer",
        "layers.{n}.norm_2": "encoder.layer.{n}.layer_norm_2",
        "pooler.dense": "pooler.dense",
    },
)


def claims(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` that calls itself BERT is one of these."""
    return config.get("model_type") == "bert" and config.get("position_embedding_type") == "alibi"


@dataclass(frozen=True, kw_only=True)
class Config(bert.Config):
    """The keys of a Jina BERT ``config.json``.

    ``qk_post_norm`` is not among them: which code a checkpoint came with tells it.
    """

    max_position_embeddings: int = 8192
    position_embedding_type: str = "alibi"
    feed_forward_type: str = "original"
    qk_post_norm: bool = False

    @classmethod
    def modernise(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        code = f"{config.get('auto_map')} {config.get('_name_or_path')}"
        return {"feed_forward_type": "original", "qk_post_norm": "qk-post-norm" in code, **config}

    def __post_init__(self) -> None:
        super(bert.Config, self).__post_init__()
        self.require("position_embedding_type", "alibi")
        self.require("feed_forward_type", *GATES)
        self.require("is_decoder", False)


def slopes(num_heads: int) -> list[float]:
    """ALiBi's slope of each head (Press et al. 2021, https://arxiv.org/abs/2108.12409, their reference code).

    A geometric sequence for a power of two; for other numbers, every second one of the next sequence fills it up.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    result = [2 ** (-8 * (n + 1) / power) for n in range(power)]
    if power < num_heads:
        result += slopes(2 * power)[0::2][: num_heads - power]
    return result


def position_bias(num_heads: int, length: int, dtype: mx.Dtype) -> mx.array:
    """``-slope * |i - j|``, ``(1, H, L, L)``."""
    positions = mx.arange(length)
    distance = mx.abs(positions[:, None] - positions[None, :]).astype(mx.float32)
    return (-mx.array(slopes(num_heads))[None, :, None, None] * distance).astype(dtype)


class Attention(nn.Module):
    """Multi-head self-attention with biased scores."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.qk_post_norm = config.qk_post_norm
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        if self.qk_post_norm:
            self.query_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.key_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def __call__(self, x: mx.array, bias: mx.array, return_weights: bool) -> tuple[mx.array, mx.array | None]:
        B, L, _ = x.shape
        q, k, v = mx.split(by_rows(self.qkv, x), 3, axis=-1)
        if self.qk_post_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k, v = (part.reshape(B, L, self.num_heads, -1).transpose(0, 2, 1, 3) for part in (q, k, v))
        dropout = self.dropout_prob if self.training else 0.0
        x, weights = attend(q, k, v, bias, dropout, return_weights)
        return by_rows(self.out, x), weights


class MLP(nn.Module):
    """GeGLU or ReGLU: ``down(act(gate) * a)`` with ``gate, a`` the halves of ``gate_up(x)``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self._act = activation(GATES[config.feed_forward_type])

    def __call__(self, x: mx.array) -> mx.array:
        gate, x = mx.split(self.gate_up(x), 2, axis=-1)
        return self.down(self.dropout(self._act(gate) * x))


class Layer(nn.Module):
    """Post-norm: ``x = norm(x + attention(x))``, then ``x = norm(x + mlp(x))``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def __call__(self, x: mx.array, bias: mx.array, return_weights: bool = False) -> tuple[mx.array, mx.array | None]:
        attended, weights = self.attention(x, bias, return_weights)
        x = self.attention_norm(x + self.dropout(attended))
        return by_rows(lambda x: self.mlp_norm(x + self.mlp(x)), x), weights


class QKPostNormMLP(nn.Module):
    """As :class:`MLP`, with the gate in the second half."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up_gate = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.out = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self._act = activation(GATES[config.feed_forward_type])

    def __call__(self, x: mx.array) -> mx.array:
        x, gate = mx.split(self.up_gate(x), 2, axis=-1)
        return self.out(self.dropout(x * self._act(gate)))


class QKPostNormLayer(nn.Module):
    """``x = norm(x + norm(x + attention(x)))``, then ``x = norm(x + mlp(x))``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = QKPostNormMLP(config)
        self.norm_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def __call__(self, x: mx.array, bias: mx.array, return_weights: bool = False) -> tuple[mx.array, mx.array | None]:
        attended, weights = self.attention(x, bias, return_weights)
        x = self.norm_1(x + self.attention_norm(x + self.dropout(attended)))
        return by_rows(lambda x: self.norm_2(x + self.mlp(x)), x), weights


class Model(nn.Module):
    """The encoder. ``pooler`` takes the first token's state ``(B, D)``; None if the checkpoint has none."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nomic_bert.Embeddings(config)
        layer = QKPostNormLayer if config.qk_post_norm else Layer
        self.layers = [layer(config) for _ in range(config.num_hidden_layers)]
        self.pooler = bert.Pooler(config)

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
            position_ids: must be None: the scores go by the distance of places.

        Raises:
            ValueError: wrong shapes, or positions are given.
        """
        check_inputs(self.config, input_ids, attention_mask)
        if position_ids is not None:
            raise ValueError("[jina_bert] expected position_ids to be None but got an array. ALiBi knows places only.")
        x = self.embeddings(input_ids, token_type_ids)
        bias = position_bias(self.config.num_attention_heads, input_ids.shape[1], x.dtype)
        bias = masked_bias(bias, key_padding_mask(attention_mask))
        hidden_states, attentions = [x], []
        for layer in self.layers:
            x, weights = layer(x, bias, output_attentions)
            hidden_states.append(x)
            attentions.append(weights)
        return EncoderOutput(
            x, hidden_states if output_hidden_states else None, attentions if output_attentions else None
        )
