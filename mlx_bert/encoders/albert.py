"""ALBERT (Lan et al. 2019, https://arxiv.org/abs/1909.11942): few layers used many times, on small embeddings.

Dimensions: B batch, L tokens, E embedding size, D hidden size, H attention heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_bert.encoders import bert
from mlx_bert.encoders.base import EncoderOutput, NameMap, check_inputs, key_padding_mask

GROUP = "encoder.albert_layer_groups.{n}.albert_layers.{m}"
NAMES = NameMap(
    prefix="albert.",
    table={
        "embeddings.word": "embeddings.word_embeddings",
        "embeddings.position": "embeddings.position_embeddings",
        "embeddings.token_type": "embeddings.token_type_embeddings",
        "embeddings.norm": "embeddings.LayerNorm",
        "embeddings.project": "encoder.embedding_hidden_mapping_in",
        "layers.{n}.inner.{m}.attention.qkv": (
            f"{GROUP}.attention.query",
            f"{GROUP}.attention.key",
            f"{GROUP}.attention.value",
        ),
        "layers.{n}.inner.{m}.attention.out": f"{GROUP}.attention.dense",
        "layers.{n}.inner.{m}.attention_norm": f"{GROUP}.attention.LayerNorm",
        "layers.{n}.inner.{m}.mlp.up": f"{GROUP}.ffn",
        "layers.{n}.inner.{m}.mlp.down": f"{GROUP}.ffn_output",
        "layers.{n}.inner.{m}.mlp_norm": f"{GROUP}.full_layer_layer_norm",
        "pooler.dense": "pooler",
    },
)


@dataclass(frozen=True, kw_only=True)
class Config(bert.Config):
    """The keys of an ALBERT ``config.json``; defaults are transformers' ``AlbertConfig``'s (albert-xxlarge-v2).

    ``num_hidden_layers`` counts how often a group is applied, ``num_hidden_groups`` the groups that have weights,
    ``inner_group_num`` the layers in each.
    """

    model_type: str = "albert"
    vocab_size: int = 30000
    embedding_size: int = 128
    hidden_size: int = 4096
    num_hidden_groups: int = 1
    num_attention_heads: int = 64
    intermediate_size: int = 16384
    inner_group_num: int = 1
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.num_hidden_groups <= self.num_hidden_layers or not 1 <= self.inner_group_num <= 64:
            raise ValueError(
                f"[albert] expected 1 to {self.num_hidden_layers} num_hidden_groups and 1 to 64 inner_group_num but "
                f"got {self.num_hidden_groups} and {self.inner_group_num}. Check config.json."
            )


class Embeddings(nn.Module):
    """``project(LayerNorm(word + token type + position))``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size = config.embedding_size
        self.word = nn.Embedding(config.vocab_size, size)
        self.position = nn.Embedding(config.max_position_embeddings, size)
        self.num_segments = config.type_vocab_size
        self.token_type = nn.Embedding(config.type_vocab_size, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.project = nn.Linear(size, config.hidden_size)

    def __call__(self, input_ids: mx.array, token_type_ids: mx.array | None, position_ids: mx.array | None) -> mx.array:
        if token_type_ids is None or self.num_segments == 1:
            token_type_ids = mx.zeros((1, 1), dtype=mx.int32)
        if position_ids is None:
            position_ids = mx.arange(input_ids.shape[1])[None]
        embeddings = self.word(input_ids) + self.token_type(token_type_ids) + self.position(position_ids)
        return self.project(self.dropout(self.norm(embeddings)))


class Layer(bert.Layer):
    """BERT's layer but for the dropout on the MLP's output, which ALBERT does not have."""

    def __call__(
        self, x: mx.array, mask: mx.array | None, return_weights: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        attended, weights = self.attention(x, mask, return_weights)
        x = self.attention_norm(x + self.dropout(attended))
        return self.mlp_norm(x + self.mlp(x)), weights


class Group(nn.Module):
    """Layers that are always applied together; one in all published checkpoints."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.inner = [Layer(config) for _ in range(config.inner_group_num)]

    def __call__(self, x: mx.array, mask: mx.array | None, return_weights: bool = False) -> tuple[mx.array | None, ...]:
        """Return each inner layer's output, then each one's probabilities."""
        states, attentions = [], []
        for layer in self.inner:
            x, weights = layer(x, mask, return_weights)
            states.append(x)
            attentions.append(weights)
        return (*states, *attentions)


class Model(nn.Module):
    """The encoder. ``pooler`` takes the first token's state ``(B, D)``; None if the checkpoint has none.

    ``layers`` holds the groups, each once: to freeze one is to freeze every layer that uses its weights, and with a
    single group (all published checkpoints) that is the whole stack. With several layers in a group, hidden states and
    attentions come from each of them, as in transformers.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = [Group(config) for _ in range(config.num_hidden_groups)]
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
        """Encode token ids; arguments as in :class:`mlx_bert.encoders.bert.Model`."""
        check_inputs(self.config, input_ids, attention_mask)
        mask = key_padding_mask(attention_mask)
        x = self.embeddings(input_ids, token_type_ids, position_ids)
        hidden_states, attentions = [x], []
        inner = self.config.inner_group_num
        for n in range(self.config.num_hidden_layers):
            group = self.layers[int(n / (self.config.num_hidden_layers / self.config.num_hidden_groups))]
            results = group(x, mask, output_attentions)
            hidden_states += results[:inner]
            attentions += results[inner:]
            x = hidden_states[-1]
        return EncoderOutput(
            x, hidden_states if output_hidden_states else None, attentions if output_attentions else None
        )
