"""EuroBERT (Boizard et al. 2025, https://arxiv.org/abs/2503.05500).

Pre-norm with RMSNorm, rotary positions, SwiGLU; several query heads may share a key and value head.

Dimensions: B batch, L tokens, D hidden size, H attention heads, G key and value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
)
from mlx_bert.encoders.cpu import by_rows, side_by_side
from mlx_bert.encoders.rotary import Rotary, rope_parameters, rotary, rotate

THETA = 10_000.0


def qkv_rows(config: Config) -> dict[str, tuple[int, ...]]:
    """How many rows of the fused projection are q's, k's and v's."""
    queries, keys = config.num_attention_heads * config.head_size, config.num_groups * config.head_size
    return {"layers.{n}.attention.qkv": (queries, keys, keys)}


NAMES = NameMap(
    prefix="model.",
    table={
        "embeddings.tokens": "embed_tokens",
        "layers.{n}.attention_norm": "layers.{n}.input_layernorm",
        "layers.{n}.attention.qkv": (
            "layers.{n}.self_attn.q_proj",
            "layers.{n}.self_attn.k_proj",
            "layers.{n}.self_attn.v_proj",
        ),
        "layers.{n}.attention.out": "layers.{n}.self_attn.o_proj",
        "layers.{n}.mlp_norm": "layers.{n}.post_attention_layernorm",
        "layers.{n}.mlp.up": ("layers.{n}.mlp.gate_proj", "layers.{n}.mlp.up_proj"),
        "layers.{n}.mlp.down": "layers.{n}.mlp.down_proj",
        "final_norm": "norm",
    },
    rows=qkv_rows,
)


@dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """The keys of a EuroBERT ``config.json``; defaults are transformers'."""

    model_type: str = "eurobert"
    vocab_size: int = 128256
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int = 3072
    hidden_act: str = "silu"
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    pad_token_id: int | None = 128001
    rope_parameters: dict[str, Any] | None = None

    @classmethod
    def modernise(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        outdated = ("auto_map", "rope_theta", "rope_scaling", "clf_pooling")
        new = {key: value for key, value in config.items() if key not in outdated}
        if config.get("clf_pooling"):  # of the classifiers; the encoder does not read it
            new.setdefault("classifier_pooling", config["clf_pooling"])
        return {**new, "rope_parameters": rope_parameters(config, THETA)}

    @property
    def num_groups(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rotary(self) -> Rotary:
        return rotary(self.rope_parameters or {"rope_theta": THETA}, self.model_type)

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.hidden_act)
        if self.num_attention_heads % self.num_groups:
            raise ValueError(
                f"[eurobert] expected num_attention_heads to be a multiple of num_key_value_heads but got "
                f"{self.num_attention_heads} and {self.num_groups}. Check config.json."
            )
        self.rotary  # noqa: B018 - raises for what is not supported


class Embeddings(nn.Module):
    """The token table; positions come in through rotary attention."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)

    def __call__(self, input_ids: mx.array) -> mx.array:
        return self.tokens(input_ids)


class Attention(nn.Module):
    """Grouped-query self-attention (Ainslie et al. 2023) with rotary positions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.num_heads, self.num_groups = config.num_attention_heads, config.num_groups
        self.dropout_prob = config.attention_dropout
        self.rope = config.rotary
        rows = (self.num_heads + 2 * self.num_groups) * config.head_size
        self.qkv = nn.Linear(config.hidden_size, rows, bias=config.attention_bias)
        self.out = nn.Linear(self.num_heads * config.head_size, config.hidden_size, bias=config.attention_bias)

    def __call__(
        self, x: mx.array, mask: mx.array | None, position_ids: mx.array | None, return_weights: bool
    ) -> tuple[mx.array, mx.array | None]:
        B, L, _ = x.shape
        heads = by_rows(self.qkv, x).reshape(B, L, self.num_heads + 2 * self.num_groups, -1).transpose(0, 2, 1, 3)
        q, k, v = mx.split(heads, [self.num_heads, self.num_heads + self.num_groups], axis=1)
        q, k = side_by_side(lambda x: rotate(x, self.rope, position_ids), q, k)
        x, weights = attend(q, k, v, mask, self.dropout_prob if self.training else 0.0, return_weights)
        return by_rows(self.out, x), weights


class MLP(nn.Module):
    """SwiGLU: ``down(act(gate) * a)`` with ``gate, a`` the halves of ``up(x)``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self._act = activation(config.hidden_act)

    def __call__(self, x: mx.array) -> mx.array:
        gate, x = mx.split(self.up(x), 2, axis=-1)
        return self.down(self._act(gate) * x)


class Layer(nn.Module):
    """Pre-norm: ``x = x + attention(norm(x))``, then ``x = x + mlp(norm(x))``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)

    def __call__(
        self, x: mx.array, mask: mx.array | None, position_ids: mx.array | None, return_weights: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        attended, weights = self.attention(self.attention_norm(x), mask, position_ids, return_weights)
        x = x + attended
        return by_rows(lambda x: x + self.mlp(self.mlp_norm(x)), x), weights


class Model(nn.Module):
    """The encoder. EuroBERT has no pooler; its task heads bring their own dense layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = [Layer(config) for _ in range(config.num_hidden_layers)]
        self.final_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

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
            token_type_ids: not used: EuroBERT has no segments.
            position_ids: ``(B, L)`` or ``(1, L)``; None for 0, 1, 2, ...
        """
        check_inputs(self.config, input_ids, attention_mask)
        mask = key_padding_mask(attention_mask)
        x = self.embeddings(input_ids)
        hidden_states, attentions = [x], []
        for layer in self.layers:
            x, weights = layer(x, mask, position_ids, output_attentions)
            hidden_states.append(x)
            attentions.append(weights)
        x = self.final_norm(x)
        hidden_states[-1] = x
        return EncoderOutput(
            x, hidden_states if output_hidden_states else None, attentions if output_attentions else None
        )
