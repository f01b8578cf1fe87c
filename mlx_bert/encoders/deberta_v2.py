"""DeBERTa v2, v3 and mDeBERTa (He et al. 2020, https://arxiv.org/abs/2006.03654; https://arxiv.org/abs/2111.09543).

Attention scores are content to content, content to position (c2p) and position to content (p2c). Positions are the
distances between tokens, of which the far ones share logarithmic buckets.

Dimensions: B batch, L tokens, D hidden size, H attention heads, d = D / H, P = 2L - 1 distances,
R rows in use of the table of relative positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

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
    masked_bias,
)
from mlx_bert.encoders.bert import MLP

NAMES = NameMap(
    prefix="deberta.",
    table={
        "embeddings.word": "embeddings.word_embeddings",
        "embeddings.position": "embeddings.position_embeddings",
        "embeddings.token_type": "embeddings.token_type_embeddings",
        "embeddings.project": "embeddings.embed_proj",
        "embeddings.norm": "embeddings.LayerNorm",
        "relative": "encoder.rel_embeddings",
        "relative_norm": "encoder.LayerNorm",
        "layers.{n}.attention.qkv": (
            "encoder.layer.{n}.attention.self.query_proj",
            "encoder.layer.{n}.attention.self.key_proj",
            "encoder.layer.{n}.attention.self.value_proj",
        ),
        "layers.{n}.attention.position_key": "encoder.layer.{n}.attention.self.pos_key_proj",
        "layers.{n}.attention.position_query": "encoder.layer.{n}.attention.self.pos_query_proj",
        "layers.{n}.attention.out": "encoder.layer.{n}.attention.output.dense",
        "layers.{n}.attention_norm": "encoder.layer.{n}.attention.output.LayerNorm",
        "layers.{n}.mlp.up": "encoder.layer.{n}.intermediate.dense",
        "layers.{n}.mlp.down": "encoder.layer.{n}.output.dense",
        "layers.{n}.mlp_norm": "encoder.layer.{n}.output.LayerNorm",
        "convolution.conv": "encoder.conv.conv",
        "convolution.norm": "encoder.conv.LayerNorm",
    },
)


@dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """The keys of a DeBERTa v2 or v3 ``config.json``; defaults are transformers' ``DebertaV2Config``'s."""

    model_type: str = "deberta-v2"
    vocab_size: int = 128100
    hidden_size: int = 1536
    num_hidden_layers: int = 24
    num_attention_heads: int = 24
    intermediate_size: int = 6144
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    layer_norm_eps: float = 1e-7
    pad_token_id: int | None = 0
    attention_head_size: int | None = None
    embedding_size: int | None = None
    position_biased_input: bool = True
    relative_attention: bool = False
    max_relative_positions: int = -1
    position_buckets: int = -1
    pos_att_type: list[str] | None = None
    share_att_key: bool = False
    norm_rel_ebd: str = "none"
    conv_kernel_size: int = 0
    conv_groups: int = 1
    conv_act: str = "tanh"

    @classmethod
    def modernise(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Older files spell ``pos_att_type`` as ``"p2c|c2p"``."""
        kinds = config.get("pos_att_type")
        if isinstance(kinds, str):
            kinds = [kind.strip() for kind in kinds.lower().split("|") if kind.strip()]
        return {**config, "pos_att_type": kinds}

    def to_dict(self) -> dict[str, Any]:
        """As in the files, a size that goes without saying is left out: transformers does not take null for one."""
        silent = {"attention_head_size", "embedding_size"}
        return {key: value for key, value in super().to_dict().items() if value is not None or key not in silent}

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.hidden_act)
        activation(self.conv_act)
        self.require("attention_head_size", None, self.hidden_size // self.num_attention_heads)
        if unknown := set(self.pos_att_type or ()) - {"c2p", "p2c"}:
            raise ValueError(
                f"[deberta-v2] expected pos_att_type to hold 'c2p' or 'p2c' but got {', '.join(sorted(unknown))}. "
                "This variant of the architecture is not supported."
            )
        if unknown := {kind.strip() for kind in self.norm_rel_ebd.lower().split("|")} - {"none", "layer_norm"}:
            raise ValueError(
                f"[deberta-v2] expected norm_rel_ebd 'none' or 'layer_norm' but got {', '.join(sorted(unknown))}. "
                "This variant of the architecture is not supported."
            )
        if self.position_buckets > 0 and self.farthest - 1 <= self.position_buckets // 2:
            raise ValueError(
                f"[deberta-v2] expected position_buckets below {2 * self.farthest - 2}, as far as positions reach, but "
                f"got {self.position_buckets}. Check config.json."
            )
        if self.conv_kernel_size > 0 and self.conv_kernel_size % 2 == 0:
            raise ValueError(
                f"[deberta-v2] expected an odd conv_kernel_size but got {self.conv_kernel_size}. Check config.json."
            )

    @property
    def unused_tensors(self) -> frozenset[str]:
        """v3 files carry the position table that only the generator of their pre-training used."""
        return frozenset() if self.position_biased_input else frozenset({"embeddings.position_embeddings.weight"})

    @property
    def farthest(self) -> int:
        """The distance from which on buckets, or without buckets distances, no longer grow."""
        return self.max_relative_positions if self.max_relative_positions >= 1 else self.max_position_embeddings

    @property
    def span(self) -> int:
        """Half the rows of the table of relative positions: row ``span`` is distance 0."""
        return self.position_buckets if self.position_buckets > 0 else self.farthest


class Embeddings(nn.Module):
    """``LayerNorm(project(word + position + token type))``, zero at padding; only the words are in every variant."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size = config.embedding_size or config.hidden_size
        self.word = nn.Embedding(config.vocab_size, size)
        if config.position_biased_input:
            self.position = nn.Embedding(config.max_position_embeddings, size)
        if config.type_vocab_size > 0:
            self.token_type = nn.Embedding(config.type_vocab_size, size)
        self.num_segments = config.type_vocab_size
        self.project = nn.Linear(size, config.hidden_size, bias=False) if size != config.hidden_size else nn.Identity()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def __call__(
        self,
        input_ids: mx.array,
        attention_mask: mx.array | None,
        token_type_ids: mx.array | None,
        position_ids: mx.array | None,
    ) -> mx.array:
        x = self.word(input_ids)
        if "position" in self:
            x = x + self.position(mx.arange(input_ids.shape[1])[None] if position_ids is None else position_ids)
        if "token_type" in self:
            if token_type_ids is None or self.num_segments == 1:
                token_type_ids = mx.zeros((1, 1), dtype=mx.int32)
            x = x + self.token_type(token_type_ids)
        x = self.norm(self.project(x))
        if attention_mask is not None:  # the convolution looks at neighbours
            x = mx.where(attention_mask.astype(mx.bool_)[..., None], x, 0)
        return self.dropout(x)


def bucket(distance: int, buckets: int, farthest: int) -> int:
    """The bucket of a distance: exact up to half the buckets, then logarithmic, without bound.

    In Python's own numbers, so that no device's rounding of a logarithm moves a distance to the next bucket.
    """
    middle = buckets // 2
    if buckets <= 0 or farthest <= 0 or abs(distance) <= middle:
        return distance
    steps = math.log(abs(distance) / middle) / math.log((farthest - 1) / middle) * (middle - 1)
    return int(math.copysign(math.ceil(steps) + middle, distance))


@lru_cache(maxsize=256)
def table_rows(length: int, buckets: int, farthest: int, span: int) -> tuple[int, ...]:
    """For each distance query - key from ``L - 1`` down to ``1 - L`` the row of the table of relative positions."""
    distances = range(length - 1, -length, -1)
    return tuple(min(max(bucket(distance, buckets, farthest) + span, 0), 2 * span - 1) for distance in distances)


def shift(scores: mx.array) -> mx.array:
    """From scores by distance ``(B, H, L, P)`` to scores by token ``(B, H, L, L)``: row i starts ``i`` further left.

    A view of the same memory (each row one element shorter than it is), where others gather.
    """
    B, H, L, P = scores.shape
    return mx.as_strided(scores, (B, H, L, L), (H * L * P, L * P, P - 1, 1), L - 1)


class Attention(nn.Module):
    """Disentangled self-attention with one fused projection for q, k and v."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        kinds = config.pos_att_type or ()
        # The scale counts the kinds even where relative_attention switches them off.
        self.scale = 1 / math.sqrt(size // config.num_attention_heads * (1 + len(set(kinds))))
        self.c2p = config.relative_attention and "c2p" in kinds
        self.p2c = config.relative_attention and "p2c" in kinds
        self.qkv = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        if self.c2p and not config.share_att_key:
            self.position_key = nn.Linear(size, size)
        if self.p2c and not config.share_att_key:
            self.position_query = nn.Linear(size, size)
        self.share_key = config.share_att_key
        self.position_dropout = nn.Dropout(config.hidden_dropout_prob)

    def __call__(
        self,
        x: mx.array,
        mask: mx.array | None,
        rows: mx.array | None,
        index: mx.array | None,
        return_weights: bool = False,
    ) -> tuple[mx.array, mx.array | None]:
        B, L, _ = x.shape
        q, k, v = self.qkv(x).reshape(B, L, 3, self.num_heads, -1).transpose(2, 0, 3, 1, 4)
        if self.c2p or self.p2c:
            mask = masked_bias(self.position_scores(q, k, self.position_dropout(rows), index), mask)
        dropout = self.dropout_prob if self.training else 0.0
        x, weights = attend(q, k, v, mask, dropout, return_weights, self.scale)
        return self.out(x), weights

    def position_scores(self, query: mx.array, key: mx.array, rows: mx.array, index: mx.array) -> mx.array:
        """The sum of c2p and p2c, ``(B, H, L, L)``, scaled before the products: float16 could not hold them else."""
        index = mx.stop_gradient(index)  # gradient checkpointing asks for the gradient of every argument
        if self.share_key:
            shared_query, shared_key, _ = mx.split(self.qkv(rows), 3, axis=-1)
        scores = 0
        if self.c2p:
            positions = self.split_heads(shared_key if self.share_key else self.position_key(rows))
            scores = shift((query * self.scale) @ positions[:, :, index].swapaxes(-1, -2))
        if self.p2c:
            positions = self.split_heads(shared_query if self.share_key else self.position_query(rows))
            # Seen from the key the distances run the other way.
            by_key = shift((key * self.scale) @ positions[:, :, index[::-1]].swapaxes(-1, -2))
            scores = scores + by_key.swapaxes(-1, -2)
        return scores

    def split_heads(self, x: mx.array) -> mx.array:
        """``(1, R, D)`` -> ``(1, H, R, d)``."""
        return x.reshape(1, x.shape[1], self.num_heads, -1).swapaxes(1, 2)


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
        self,
        x: mx.array,
        mask: mx.array | None,
        rows: mx.array | None,
        index: mx.array | None,
        return_weights: bool = False,
    ) -> tuple[mx.array, mx.array | None]:
        attended, weights = self.attention(x, mask, rows, index, return_weights)
        x = self.attention_norm(x + self.dropout(attended))
        return self.mlp_norm(x + self.dropout(self.mlp(x))), weights


class Conv(nn.Module):
    """A convolution over tokens with its weight as PyTorch lays it out: ``(D, D / groups, kernel)``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.groups, self.padding = config.conv_groups, config.conv_kernel_size // 2
        bound = 1 / math.sqrt(config.hidden_size // self.groups * config.conv_kernel_size)
        shape = (config.hidden_size, config.hidden_size // self.groups, config.conv_kernel_size)
        self.weight = mx.random.uniform(-bound, bound, shape)
        self.bias = mx.zeros((config.hidden_size,))

    def __call__(self, x: mx.array) -> mx.array:
        return mx.conv1d(x, self.weight.swapaxes(1, 2), padding=self.padding, groups=self.groups) + self.bias


class Convolution(nn.Module):
    """Local context beside the first layer: ``LayerNorm(layer(x) + act(conv(x)))`` (DeBERTa v2 xlarge and xxlarge)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.conv = Conv(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self._act = activation(config.conv_act)

    def __call__(self, embeddings: mx.array, states: mx.array) -> mx.array:
        return self.norm(states + self._act(self.dropout(self.conv(embeddings))))


class Model(nn.Module):
    """The encoder. DeBERTa has no pooler; its classifiers bring their own."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        if config.relative_attention:
            self.relative = nn.Embedding(2 * config.span, config.hidden_size)
        if "layer_norm" in config.norm_rel_ebd.lower():
            self.relative_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = [Layer(config) for _ in range(config.num_hidden_layers)]
        if config.conv_kernel_size > 0:
            self.convolution = Convolution(config)

    def relative_positions(self, length: int) -> tuple[mx.array, mx.array]:
        """Relative positions of ``length`` tokens, for all layers.

        Returns:
            The rows in use of their table, ``(1, R, D)``; and for each distance from ``L - 1`` down to ``1 - L`` its
            row, ``(P,)``.
        """
        table = table_rows(length, self.config.position_buckets, self.config.farthest, self.config.span)
        first, last = min(table), max(table)
        rows = self.relative(mx.arange(first, last + 1))[None]
        if "relative_norm" in self:
            rows = self.relative_norm(rows)
        return rows, mx.array([row - first for row in table])

    def __call__(
        self,
        input_ids: mx.array,
        attention_mask: mx.array | None = None,
        token_type_ids: mx.array | None = None,
        position_ids: mx.array | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """Encode token ids. Without absolute positions rows may be longer than ``max_position_embeddings``.

        Args:
            input_ids: integers ``(B, L)``.
            attention_mask: ``(B, L)``, 1 for real tokens; None when nothing is padded.
            token_type_ids: segment of each token ``(B, L)``, where the config has segments; None for zeros.
            position_ids: ``(B, L)`` or ``(1, L)`` for absolute positions, where the config has them. The relative ones
                go by place.
        """
        check_inputs(self.config, input_ids, attention_mask, bounded=self.config.position_biased_input)
        mask = key_padding_mask(attention_mask)
        x = self.embeddings(input_ids, attention_mask, token_type_ids, position_ids)
        rows, index = self.relative_positions(input_ids.shape[1]) if "relative" in self else (None, None)
        hidden_states, attentions = [x], []
        for n, layer in enumerate(self.layers):
            x, weights = layer(x, mask, rows, index, output_attentions)
            if n == 0 and "convolution" in self:
                x = self.convolution(hidden_states[0], x)
            hidden_states.append(x)
            attentions.append(weights)
        return EncoderOutput(
            x, hidden_states if output_hidden_states else None, attentions if output_attentions else None
        )
