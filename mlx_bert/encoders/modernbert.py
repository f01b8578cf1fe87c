"""ModernBERT (Warner et al. 2024, https://arxiv.org/abs/2412.13663), with mmBERT and Ettin as other sizes of it.

Pre-norm, rotary positions, GeGLU, no biases; every third layer attends to all tokens, the others to a local window.

Dimensions: B batch, L tokens, D hidden size, H attention heads, d = D / H.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn

from mlx_bert.encoders import cpu
from mlx_bert.encoders.base import (
    EncoderConfig,
    EncoderOutput,
    NameMap,
    activation,
    attend,
    check_inputs,
    key_padding_mask,
    open_blind_rows,
)
from mlx_bert.encoders.cpu import by_rows, side_by_side
from mlx_bert.encoders.cpu_trace import is_traced
from mlx_bert.encoders.rotary import Rotary, rotate

GLOBAL, LOCAL = "full_attention", "sliding_attention"
DEFAULT_THETA = {GLOBAL: 160_000.0, LOCAL: 10_000.0}
LEGACY_THETA = {GLOBAL: "global_rope_theta", LOCAL: "local_rope_theta"}

# From this many windows on, blocks of the sequence attend to their neighbours only, instead of all to all under a mask.
BLOCKS_FROM = 8

NAMES = NameMap(
    prefix="model.",
    table={
        "embeddings.tokens": "embeddings.tok_embeddings",
        "embeddings.norm": "embeddings.norm",
        "layers.{n}.attention_norm": "layers.{n}.attn_norm",
        "layers.{n}.attention.qkv": "layers.{n}.attn.Wqkv",
        "layers.{n}.attention.out": "layers.{n}.attn.Wo",
        "layers.{n}.mlp_norm": "layers.{n}.mlp_norm",
        "layers.{n}.mlp.up": "layers.{n}.mlp.Wi",
        "layers.{n}.mlp.down": "layers.{n}.mlp.Wo",
        "final_norm": "final_norm",
    },
)


@dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """The keys of a ModernBERT ``config.json``; defaults are ModernBERT-base's.

    Two styles exist. Checkpoints of 2024 and 2025 have ``global_attn_every_n_layers``, ``global_rope_theta`` and
    ``local_rope_theta``; those saved by transformers 5 have ``layer_types`` and ``rope_parameters``. Both are read;
    the second is what the fields hold.
    """

    model_type: str = "modernbert"
    vocab_size: int = 50368
    hidden_size: int = 768
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    intermediate_size: int = 1152
    hidden_activation: str = "gelu"
    max_position_embeddings: int = 8192
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float = 0.0
    embedding_dropout: float = 0.0
    mlp_dropout: float = 0.0
    local_attention: int = 128
    layer_types: list[str] | None = None
    rope_parameters: dict[str, Any] | None = None
    pad_token_id: int | None = 50283

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        config = dict(config)
        if config.get("layer_types") is None:
            every = config.get("global_attn_every_n_layers", 3)
            layers = config.get("num_hidden_layers", cls.num_hidden_layers)
            config["layer_types"] = [LOCAL if n % every else GLOBAL for n in range(layers)]
        rope = config.get("rope_parameters") or {}
        config["rope_parameters"] = {
            kind: {
                "rope_type": "default",
                "rope_theta": config.get(LEGACY_THETA[kind], default),
                **(rope.get(kind) or {}),
                **(config.get("rope_scaling") or {}),
            }
            for kind, default in DEFAULT_THETA.items()
        }
        return super().from_dict(config)

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.hidden_activation)
        if self.layer_types is None or self.rope_parameters is None:
            filled = self.from_dict(self.to_dict())
            object.__setattr__(self, "layer_types", filled.layer_types)
            object.__setattr__(self, "rope_parameters", filled.rope_parameters)
        if len(self.layer_types) != self.num_hidden_layers or not set(self.layer_types) <= {GLOBAL, LOCAL}:
            raise ValueError(
                f"[modernbert] expected layer_types to hold {self.num_hidden_layers} times {GLOBAL!r} or {LOCAL!r} "
                f"but got {self.layer_types}. Check config.json."
            )
        for kind, rope in self.rope_parameters.items():
            if rope.get("rope_type", rope.get("type", "default")) != "default":
                raise ValueError(
                    f"[modernbert] expected rope_type 'default' for {kind} but got {rope}. "
                    "Scaled rotary positions are not supported for this architecture."
                )


class Embeddings(nn.Module):
    """``LayerNorm(token)``; positions come in through rotary attention."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        self.dropout = nn.Dropout(config.embedding_dropout)

    def __call__(self, input_ids: mx.array) -> mx.array:
        return self.dropout(self.norm(self.tokens(input_ids)))


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions."""

    def __init__(self, config: Config, kind: str) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.rope = Rotary(config.rope_parameters[kind]["rope_theta"])
        self.dropout_prob = config.attention_dropout
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.dropout = nn.Dropout(config.attention_dropout)

    def __call__(
        self,
        x: mx.array,
        mask: mx.array | None,
        position_ids: mx.array | None,
        return_weights: bool = False,
        window: int | None = None,
    ) -> tuple[mx.array, mx.array | None]:
        B, L, _ = x.shape
        q, k, v = by_rows(self.qkv, x).reshape(B, L, 3, self.num_heads, -1).transpose(2, 0, 3, 1, 4)
        q, k = side_by_side(lambda x: rotate(x, self.rope, position_ids), q, k)
        dropout = self.dropout_prob if self.training else 0.0
        if window is None:
            x, weights = attend(q, k, v, mask, dropout, return_weights)
        else:
            x, weights = attend_in_blocks(q, k, v, mask, window, dropout), None
        return self.dropout(by_rows(self.out, x)), weights


class MLP(nn.Module):
    """GeGLU: ``down(act(a) * b)`` with ``a, b`` the halves of ``up(x)``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.dropout = nn.Dropout(config.mlp_dropout)
        self._act = activation(config.hidden_activation)

    def __call__(self, x: mx.array) -> mx.array:
        x, gate = mx.split(self.up(x), 2, axis=-1)
        return self.down(self.dropout(self._act(x) * gate))


class Layer(nn.Module):
    """Pre-norm: ``x = x + attention(norm(x))``, then ``x = x + mlp(norm(x))``; layer 0 has no first norm."""

    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        self.is_local = config.layer_types[index] == LOCAL
        norm = {"dims": config.hidden_size, "eps": config.norm_eps, "bias": config.norm_bias}
        self.attention_norm = nn.LayerNorm(**norm) if index > 0 else nn.Identity()
        self.attention = Attention(config, config.layer_types[index])
        self.mlp_norm = nn.LayerNorm(**norm)
        self.mlp = MLP(config)

    def __call__(
        self,
        x: mx.array,
        mask: mx.array | None,
        position_ids: mx.array | None,
        return_weights: bool = False,
        window: int | None = None,
    ) -> tuple[mx.array, mx.array | None]:
        normed = by_rows(self.attention_norm, x)
        attended, weights = self.attention(normed, mask, position_ids, return_weights, window)
        return by_rows(lambda x: x + self.mlp(self.mlp_norm(x)), x + attended), weights


def local_mask(mask: mx.array | None, length: int, window: int) -> mx.array | None:
    """Narrow a key-padding mask ``(B, 1, 1, L)`` to tokens at most ``window`` away: ``(B or 1, 1, L, L)``."""
    if length <= window + 1:
        return mask
    positions = mx.arange(length)
    near = mx.abs(positions[:, None] - positions[None, :]) <= window
    return near[None, None] if mask is None else open_blind_rows(near & mask)


def block_mask(attention_mask: mx.array | None, batch: int, length: int, window: int) -> mx.array:
    """The mask of :func:`attend_in_blocks`: within the window, real, and inside the row.

    Returns:
        Boolean ``(B * n, 1, window, 3 * window)`` for the ``n`` blocks of each row.
    """
    blocks = -(-length // window)
    real = mx.ones((batch, length), dtype=mx.bool_) if attention_mask is None else attention_mask.astype(mx.bool_)
    real = mx.pad(real, [(0, 0), (window, (blocks + 1) * window - length)])
    real = real.reshape(batch, blocks + 2, window)
    real = mx.concatenate([real[:, :-2], real[:, 1:-1], real[:, 2:]], axis=-1)
    distance = mx.arange(3 * window)[None, :] - window - mx.arange(window)[:, None]
    near = mx.abs(distance) <= window
    return open_blind_rows(near & real.reshape(batch * blocks, 1, 1, 3 * window))


def attend_in_blocks(
    query: mx.array, key: mx.array, value: mx.array, mask: mx.array, window: int, dropout: float = 0.0
) -> mx.array:
    """Local attention in time linear in ``L``: each block of ``window`` queries sees the 3 blocks of keys around it.

    Args:
        query, key, value: ``(B, H, L, d)``.
        mask: of :func:`block_mask`.
        window: how far a token sees to each side.
        dropout: as in :func:`mlx_bert.encoders.base.attend`.

    Returns:
        ``(B, L, H * d)``, equal to dense attention under :func:`local_mask` at every real position.
    """
    B, H, L, d = query.shape
    if cpu.suits(query) and not is_traced() and dropout == 0:
        x = cpu.attention_in_blocks(query, key, value, mask, window, 1 / math.sqrt(d))
        return x.transpose(0, 2, 1, 3).reshape(B, L, H * d)
    blocks = -(-L // window)
    behind = (blocks + 1) * window - L

    def neighbours(x: mx.array) -> mx.array:
        x = mx.pad(x, [(0, 0), (0, 0), (window, behind), (0, 0)])
        row = x.shape[2] * d
        x = mx.as_strided(x, (B, blocks, H, 3 * window, d), (H * row, window * d, row, d, 1))
        return x.reshape(B * blocks, H, 3 * window, d)

    query = mx.pad(query, [(0, 0), (0, 0), (0, behind - window), (0, 0)])
    query = query.reshape(B, H, blocks, window, d).transpose(0, 2, 1, 3, 4).reshape(B * blocks, H, window, d)
    x, _ = attend(query, *side_by_side(neighbours, key, value), mask, dropout)
    return x.reshape(B, blocks * window, H * d)[:, :L]


class Model(nn.Module):
    """The encoder. ModernBERT has no pooler; its task heads bring their own dense layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = [Layer(config, n) for n in range(config.num_hidden_layers)]
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)

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
            token_type_ids: not used: ModernBERT has no segments.
            position_ids: ``(B, L)`` or ``(1, L)``; None for 0, 1, 2, ... The local window goes by place, not by these.
        """
        check_inputs(self.config, input_ids, attention_mask)
        window = self.config.local_attention // 2
        in_blocks = 0 < window * BLOCKS_FROM <= input_ids.shape[1] and not output_attentions
        everywhere = key_padding_mask(attention_mask)
        if in_blocks:
            nearby = block_mask(attention_mask, *input_ids.shape, window)
        else:
            nearby = local_mask(everywhere, input_ids.shape[1], window)
        x = self.embeddings(input_ids)
        hidden_states, attentions = [x], []
        for layer in self.layers:
            if layer.is_local:
                x, weights = layer(x, nearby, position_ids, output_attentions, window if in_blocks else None)
            else:
                x, weights = layer(x, everywhere, position_ids, output_attentions)
            hidden_states.append(x)
            attentions.append(weights)
        x = self.final_norm(x)
        hidden_states[-1] = x
        return EncoderOutput(
            x, hidden_states if output_hidden_states else None, attentions if output_attentions else None
        )
