"""EmbeddingGemma (Vera et al. 2025, https://arxiv.org/abs/2509.20354): Gemma 3 without the causal mask.

RMSNorm before and after each block, also on queries and keys; rotary positions; GeGLU; several query heads share a key
and value head; every sixth layer attends to all tokens, the others to a local window.

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
from mlx_bert.encoders.cpu import by_rows
from mlx_bert.encoders.modernbert import local_mask
from mlx_bert.encoders.rotary import Rotary, rotary, rotate

GLOBAL, LOCAL = "full_attention", "sliding_attention"
DEFAULT_THETA = {GLOBAL: 1_000_000.0, LOCAL: 10_000.0}
LEGACY_THETA = {GLOBAL: "rope_theta", LOCAL: "rope_local_base_freq"}
HALF = mx.bfloat16  # to compute in on a GPU: activations leave float16's range
LEGACY_PATTERN = ("sliding_window_pattern", "_sliding_window_pattern")


def qkv_rows(config: Config) -> dict[str, tuple[int, ...]]:
    """How many rows of the fused projection are q's, k's and v's."""
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
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
        "layers.{n}.attention.query_norm": "layers.{n}.self_attn.q_norm",
        "layers.{n}.attention.key_norm": "layers.{n}.self_attn.k_norm",
        "layers.{n}.attention.out": "layers.{n}.self_attn.o_proj",
        "layers.{n}.attention_out_norm": "layers.{n}.post_attention_layernorm",
        "layers.{n}.mlp_norm": "layers.{n}.pre_feedforward_layernorm",
        "layers.{n}.mlp.up": ("layers.{n}.mlp.gate_proj", "layers.{n}.mlp.up_proj"),
        "layers.{n}.mlp.down": "layers.{n}.mlp.down_proj",
        "layers.{n}.mlp_out_norm": "layers.{n}.post_feedforward_layernorm",
        "final_norm": "norm",
    },
    rows=qkv_rows,
)


@dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """The keys of a ``gemma3_text`` ``config.json``; defaults are embeddinggemma-300m's.

    Both styles are read: ``rope_theta``, ``rope_local_base_freq`` and ``_sliding_window_pattern``, or
    ``rope_parameters`` and ``layer_types``; the second is what the fields hold.
    """

    model_type: str = "gemma3_text"
    vocab_size: int = 262144
    hidden_size: int = 768
    num_hidden_layers: int = 24
    num_attention_heads: int = 3
    num_key_value_heads: int = 1
    head_dim: int = 256
    intermediate_size: int = 1152
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    attention_dropout: float = 0.0
    query_pre_attn_scalar: float = 256
    sliding_window: int = 512
    layer_types: list[str] | None = None
    rope_parameters: dict[str, Any] | None = None
    attn_logit_softcapping: float | None = None
    use_bidirectional_attention: bool = True
    pad_token_id: int | None = 0

    @classmethod
    def modernise(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        new = {"use_bidirectional_attention": False, **config}
        if config.get("layer_types") is None:
            every = next((config[key] for key in LEGACY_PATTERN if config.get(key)), 6)
            layers = config.get("num_hidden_layers", cls.num_hidden_layers)
            new["layer_types"] = [LOCAL if (n + 1) % every else GLOBAL for n in range(layers)]
        rope = config.get("rope_parameters") or {}
        new["rope_parameters"] = {
            kind: {
                "rope_type": "default",
                "rope_theta": config.get(LEGACY_THETA[kind]) or default,
                **((config.get("rope_scaling") or {}) if kind == GLOBAL else {}),
                **(rope.get(kind) or {}),
            }
            for kind, default in DEFAULT_THETA.items()
        }
        outdated = (*LEGACY_THETA.values(), *LEGACY_PATTERN, "rope_scaling")
        return {key: value for key, value in new.items() if key not in outdated}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("use_bidirectional_attention", True)
        self.require("attn_logit_softcapping", None)
        activation(self.hidden_activation)
        if self.layer_types is None or self.rope_parameters is None:
            filled = self.modernise(self.to_dict())
            object.__setattr__(self, "layer_types", filled["layer_types"])
            object.__setattr__(self, "rope_parameters", filled["rope_parameters"])
        if len(self.layer_types) != self.num_hidden_layers or not set(self.layer_types) <= {GLOBAL, LOCAL}:
            raise ValueError(
                f"[gemma3_text] expected layer_types to hold {self.num_hidden_layers} times {GLOBAL!r} or {LOCAL!r} "
                f"but got {self.layer_types}. Check config.json."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"[gemma3_text] expected num_attention_heads to be a multiple of num_key_value_heads but got "
                f"{self.num_attention_heads} and {self.num_key_value_heads}. Check config.json."
            )
        for kind in set(self.layer_types):
            self.rotary(kind)

    def rotary(self, kind: str) -> Rotary:
        """How the layers of one kind turn their heads."""
        return rotary(self.rope_parameters[kind], self.model_type)


class RMSNorm(nn.Module):
    """``x / rms(x) * (1 + weight)``, in float32."""

    def __init__(self, dims: int, eps: float) -> None:
        super().__init__()
        self.weight = mx.zeros((dims,))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, 1.0 + self.weight.astype(mx.float32), self.eps).astype(x.dtype)


class Embeddings(nn.Module):
    """``token * sqrt(D)``; positions come in through rotary attention."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.factor = config.hidden_size**0.5

    def __call__(self, input_ids: mx.array) -> mx.array:
        x = self.tokens(input_ids)
        if x.dtype == mx.float16:
            raise ValueError(
                "[gemma3_text] expected weights in float32 or bfloat16 but got float16, whose range the activations "
                'of this architecture leave. Load it with dtype="bfloat16" or dtype="float32".'
            )
        return x * mx.array(self.factor, dtype=x.dtype)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions and normalised queries and keys."""

    def __init__(self, config: Config, kind: str) -> None:
        super().__init__()
        self.num_heads, self.num_groups = config.num_attention_heads, config.num_key_value_heads
        self.scale = config.query_pre_attn_scalar**-0.5
        self.dropout_prob = config.attention_dropout
        self.rope = config.rotary(kind)
        rows = (self.num_heads + 2 * self.num_groups) * config.head_dim
        self.qkv = nn.Linear(config.hidden_size, rows, bias=config.attention_bias)
        self.query_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.key_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.out = nn.Linear(self.num_heads * config.head_dim, config.hidden_size, bias=config.attention_bias)

    def __call__(
        self, x: mx.array, mask: mx.array | None, position_ids: mx.array | None, return_weights: bool
    ) -> tuple[mx.array, mx.array | None]:
        B, L, _ = x.shape
        heads = by_rows(self.qkv, x).reshape(B, L, self.num_heads + 2 * self.num_groups, -1).transpose(0, 2, 1, 3)
        q, k, v = mx.split(heads, [self.num_heads, self.num_heads + self.num_groups], axis=1)
        q = rotate(self.query_norm(q), self.rope, position_ids)
        k = rotate(self.key_norm(k), self.rope, position_ids)
        x, weights = attend(q, k, v, mask, self.dropout_prob if self.training else 0.0, return_weights, self.scale)
        return by_rows(self.out, x), weights


class MLP(nn.Module):
    """GeGLU: ``down(act(gate) * a)`` with ``gate, a`` the halves of ``up(x)``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self._act = activation(config.hidden_activation)

    def __call__(self, x: mx.array) -> mx.array:
        gate, x = mx.split(self.up(x), 2, axis=-1)
        return self.down(self._act(gate) * x)


class Layer(nn.Module):
    """``x = x + norm(attention(norm(x)))``, then ``x = x + norm(mlp(norm(x)))``."""

    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        kind = config.layer_types[index]
        self.is_local = kind == LOCAL
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, kind)
        self.attention_out_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
        self.mlp_out_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(
        self, x: mx.array, mask: mx.array | None, position_ids: mx.array | None, return_weights: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        attended, weights = self.attention(self.attention_norm(x), mask, position_ids, return_weights)
        x = x + self.attention_out_norm(attended)
        return x + self.mlp_out_norm(by_rows(self.mlp, self.mlp_norm(x))), weights


class Model(nn.Module):
    """The encoder. It has no pooler: EmbeddingGemma takes the mean and two dense layers after it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = [Layer(config, n) for n in range(config.num_hidden_layers)]
        self.final_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

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
            token_type_ids: not used: EmbeddingGemma has no segments.
            position_ids: ``(B, L)`` or ``(1, L)``; None for 0, 1, 2, ... The local window goes by place, not by these.

        Raises:
            ValueError: wrong shapes, or weights in float16.
        """
        check_inputs(self.config, input_ids, attention_mask)
        everywhere = key_padding_mask(attention_mask)
        nearby = local_mask(everywhere, input_ids.shape[1], self.config.sliding_window // 2)
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
