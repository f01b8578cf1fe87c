"""A small sentence transformer to train from scratch (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).

Post-norm layers with ReLU over fixed sinusoidal positions; the first token's state, projected, is the sentence.

Dimensions: B batch, L tokens, D hidden size, P ``projection_size``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_bert.encoders import bert
from mlx_bert.encoders.base import EncoderConfig, EncoderOutput, NameMap, activation, check_inputs, key_padding_mask

MODULES = (
    "embeddings.word",
    "layers.{n}.attention.qkv",
    "layers.{n}.attention.out",
    "layers.{n}.attention_norm",
    "layers.{n}.mlp.up",
    "layers.{n}.mlp.down",
    "layers.{n}.mlp_norm",
    "pooler.dense",
    "pooler.norm",
)
NAMES = NameMap(prefix="compact.", table={name: name for name in MODULES})


@dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """Sizes. One dropout probability serves everywhere, as in torch's ``TransformerEncoderLayer``."""

    model_type: str = "compact"
    vocab_size: int = 8000
    hidden_size: int = 64
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    intermediate_size: int = 128
    hidden_act: str = "relu"
    hidden_dropout_prob: float = 0.1
    projection_size: int = 32
    max_position_embeddings: int = 512
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 0

    @property
    def attention_probs_dropout_prob(self) -> float:
        return self.hidden_dropout_prob

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.hidden_act)
        if self.hidden_size % 2:
            raise ValueError(
                f"[compact] expected an even hidden_size but got {self.hidden_size}: sine and cosine pair."
            )
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"[compact] expected pad_token_id below vocab_size {self.vocab_size} but got {self.pad_token_id}."
            )


def sinusoids(length: int, dims: int) -> mx.array:
    """``sin(p * 10000 ** (-2i / D))`` at ``[p, 2i]`` and the cosine at ``[p, 2i + 1]``: float32 ``(length, dims)``."""
    frequencies = mx.exp(mx.arange(0, dims, 2) * (-math.log(10_000.0) / dims))
    angles = mx.arange(length)[:, None] * frequencies
    return mx.stack([mx.sin(angles), mx.cos(angles)], axis=-1).reshape(length, dims)


class Embeddings(nn.Module):
    """``word + position``. The padding token's vector is zero and gets no gradient."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.pad = config.pad_token_id
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        # Standard deviation 1, as in torch: MLX's own 1 / sqrt(D) leaves words too faint beside the sinusoids to learn.
        self.word.weight = mx.random.normal(self.word.weight.shape)
        self.word.weight[self.pad] = 0
        self._positions = sinusoids(config.max_position_embeddings, config.hidden_size)  # private: not a parameter

    def __call__(self, input_ids: mx.array, position_ids: mx.array | None) -> mx.array:
        words = self.word(input_ids)
        words = mx.where(mx.expand_dims(input_ids != self.pad, -1), words, mx.zeros_like(words))
        positions = self._positions[: input_ids.shape[1]] if position_ids is None else self._positions[position_ids]
        return words + positions.astype(words.dtype)


class MLP(bert.MLP):
    """``down(dropout(act(up(x))))``."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down(self.dropout(self._act(self.up(x))))


class Layer(bert.Layer):
    """Post-norm: ``x = norm(x + attention(x))``, then ``x = norm(x + mlp(x))``."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.mlp = MLP(config)


class Pooler(nn.Module):
    """``norm(W dropout(h_0) + b)``: the sentence ``(B, P)`` from the first token's state ``(B, D)``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.dense = nn.Linear(config.hidden_size, config.projection_size)
        self.norm = nn.LayerNorm(config.projection_size, eps=1e-5)

    def __call__(self, first_state: mx.array) -> mx.array:
        return self.norm(self.dense(self.dropout(first_state)))


class Model(nn.Module):
    """The encoder. ``pooler`` gives the sentence ``(B, P)``; :meth:`embed` is the short way there."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = [Layer(config) for _ in range(config.num_hidden_layers)]
        self.pooler = Pooler(config)

    def embed(
        self, input_ids: mx.array, attention_mask: mx.array | None = None, return_all: bool = False
    ) -> mx.array | tuple[mx.array, mx.array]:
        """Sentences ``(B, P)`` and, on request, all tokens' states ``(B, L, D)``.

        Args:
            input_ids: integers ``(B, L)``.
            attention_mask: ``(B, L)``, 1 for real tokens; None to take every token but padding for real.
            return_all: also return the tokens' states.
        """
        if attention_mask is None:
            attention_mask = input_ids != self.config.pad_token_id
        states = self(input_ids, attention_mask).last_hidden_state
        sentences = self.pooler(states[:, 0])
        return (sentences, states) if return_all else sentences

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
            token_type_ids: not used: this encoder has no segments.
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
