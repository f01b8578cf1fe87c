"""MPNet (Song et al. 2020, https://arxiv.org/abs/2004.09297): BERT's layers with T5's relative position bias.

Absolute positions count as in RoBERTa. Dimensions: B batch, L tokens, D hidden size, H attention heads.
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
    check_inputs,
    key_padding_mask,
    masked_bias,
)
from mlx_bert.encoders.bert import Layer, Pooler
from mlx_bert.encoders.roberta import token_positions

NUM_BUCKETS = 32
PAD = 1  # transformers' MPNet counts positions from this id, whatever pad_token_id says

NAMES = NameMap(
    prefix="mpnet.",
    table={
        "embeddings.word": "embeddings.word_embeddings",
        "embeddings.position": "embeddings.position_embeddings",
        "embeddings.norm": "embeddings.LayerNorm",
        "relative_bias": "encoder.relative_attention_bias",
        "layers.{n}.attention.qkv": (
            "encoder.layer.{n}.attention.attn.q",
            "encoder.layer.{n}.attention.attn.k",
            "encoder.layer.{n}.attention.attn.v",
        ),
        "layers.{n}.attention.out": "encoder.layer.{n}.attention.attn.o",
        "layers.{n}.attention_norm": "encoder.layer.{n}.attention.LayerNorm",
        "layers.{n}.mlp.up": "encoder.layer.{n}.intermediate.dense",
        "layers.{n}.mlp.down": "encoder.layer.{n}.output.dense",
        "layers.{n}.mlp_norm": "encoder.layer.{n}.output.LayerNorm",
        "pooler.dense": "pooler.dense",
    },
)


@dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """The keys of an MPNet ``config.json``; defaults are microsoft/mpnet-base's.

    ``relative_attention_num_buckets`` is the length of the bias table. As in transformers, 32 of its rows are in use.
    """

    model_type: str = "mpnet"
    vocab_size: int = 30527
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    relative_attention_num_buckets: int = NUM_BUCKETS
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = PAD

    @property
    def max_tokens(self) -> int:
        """Positions 0 and 1 are not for tokens."""
        return self.max_position_embeddings - PAD - 1

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.hidden_act)
        if self.relative_attention_num_buckets < NUM_BUCKETS:
            raise ValueError(
                f"[mpnet] expected relative_attention_num_buckets of at least {NUM_BUCKETS} but got "
                f"{self.relative_attention_num_buckets}. Check config.json."
            )


class Embeddings(nn.Module):
    """``LayerNorm(word + position)``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def __call__(self, input_ids: mx.array, position_ids: mx.array) -> mx.array:
        return self.dropout(self.norm(self.word(input_ids) + self.position(position_ids)))


def relative_buckets(length: int) -> mx.array:
    """The bucket ``(L, L)`` of each key as a query sees it: 16 for keys up to the query, 16 for those behind it.

    The nearest 8 distances have a bucket each. Further away bucket ``8 + k`` starts at ``8 * 2 ** (k / 2)`` and the
    last goes on for ever; compared as squares of whole numbers, so that no rounding of a logarithm decides.
    """
    offset = mx.arange(length)[None, :] - mx.arange(length)[:, None]
    distance = mx.abs(offset)
    far = sum((distance * distance >= (64 << k)).astype(mx.int32) for k in range(1, 8))
    return mx.where(offset > 0, NUM_BUCKETS // 2, 0) + mx.minimum(distance, 8) + far


class Model(nn.Module):
    """The encoder. ``pooler`` takes the first token's state ``(B, D)``; None if the checkpoint has none."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.relative_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_attention_heads)
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
            token_type_ids: not used: MPNet has no segments.
            position_ids: ``(B, L)`` or ``(1, L)`` for the absolute positions; None to count real tokens from 2 on.
        """
        check_inputs(self.config, input_ids, attention_mask)
        if position_ids is None:
            position_ids = token_positions(input_ids, attention_mask, PAD)
        x = self.embeddings(input_ids, position_ids)
        # All layers share the bias, so it and the mask become one array once per batch.
        bias = self.relative_bias(relative_buckets(input_ids.shape[1])).transpose(2, 0, 1)[None]
        mask = masked_bias(bias.astype(x.dtype), key_padding_mask(attention_mask))
        hidden_states, attentions = [x], []
        for layer in self.layers:
            x, weights = layer(x, mask, output_attentions)
            hidden_states.append(x)
            attentions.append(weights)
        return EncoderOutput(
            x, hidden_states if output_hidden_states else None, attentions if output_attentions else None
        )
