"""ModernBERT (Warner et al. 2024, https://arxiv.org/abs/2412.13663), with mmBERT and Ettin as other sizes of it.

Pre-norm, rotary positions, GeGLU, no biases; every third layer attends to all tokens, the others to a local window.

Dimensions: B batch, L tokens, D hidden size, H attention heads, d = D / H.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

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
    open_blind_rows,
)

GLOBAL, LOCAL = "full_attention", "sliding_attention"
DEFAULT_THETA = {GLOBAL: 160_000.0, LOCAL: 10_000.0}
LEGACY_THETA = {GLOBAL: "global_rope_theta", LOCAL: "local_rope_theta"}

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


def rotate(x: mx.array, theta: float, position_ids: mx.array | None) -> mx.array:
    """Rotary positions (Su et al. 2021) on ``(B, H, L, d)``, halves rotated against each other.

    Args:
        position_ids: ``(B, L)`` or ``(1, L)``; None for 0, 1, 2, ...
    """
    d = x.shape[-1]
    if position_ids is None:
        return mx.fast.rope(x, d, traditional=False, base=theta, scale=1.0, offset=0)
    frequencies = theta ** (-mx.arange(0, d, 2, dtype=mx.float32) / d)
    angles = position_ids[:, None, :, None].astype(mx.float32) * frequencies
    cos, sin = mx.cos(angles), mx.sin(angles)
    left, right = mx.split(x.astype(mx.float32), 2, axis=-1)
    return mx.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions."""

    def __init__(self, config: Config, kind: str) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.theta = config.rope_parameters[kind]["rope_theta"]
        self.dropout_prob = config.attention_dropout
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.dropout = nn.Dropout(config.attention_dropout)

    def __call__(
        self, x: mx.array, mask: mx.array | None, position_ids: mx.array | None, return_weights: bool
    ) -> tuple[mx.array, mx.array | None]:
        B, L, _ = x.shape
        q, k, v = self.qkv(x).reshape(B, L, 3, self.num_heads, -1).transpose(2, 0, 3, 1, 4)
        q, k = rotate(q, self.theta, position_ids), rotate(k, self.theta, position_ids)
        x, weights = attend(q, k, v, mask, self.dropout_prob if self.training else 0.0, return_weights)
        return self.dropout(self.out(x)), weights


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
        self, x: mx.array, mask: mx.array | None, position_ids: mx.array | None, return_weights: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        attended, weights = self.attention(self.attention_norm(x), mask, position_ids, return_weights)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), weights


def local_mask(mask: mx.array | None, length: int, window: int) -> mx.array | None:
    """Narrow a key-padding mask ``(B, 1, 1, L)`` to tokens at most ``window`` away: ``(B or 1, 1, L, L)``."""
    if length <= window + 1:
        return mask
    positions = mx.arange(length)
    near = mx.abs(positions[:, None] - positions[None, :]) <= window
    return near[None, None] if mask is None else open_blind_rows(near & mask)


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
        everywhere = key_padding_mask(attention_mask)
        nearby = local_mask(everywhere, input_ids.shape[1], self.config.local_attention // 2)
        x = self.embeddings(input_ids)
        hidden_states, attentions = [x], []
        for layer in self.layers:
            x, weights = layer(x, nearby if layer.is_local else everywhere, position_ids, output_attentions)
            hidden_states.append(x)
            attentions.append(weights)
        x = self.final_norm(x)
        hidden_states[-1] = x
        return EncoderOutput(
            x, hidden_states if output_hidden_states else None, attentions if output_attentions else None
        )
