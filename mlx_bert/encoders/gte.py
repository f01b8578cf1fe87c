"""GTE (Zhang et al. 2024, https://arxiv.org/abs/2407.19669): gte-*-en-v1.5, gte-multilingual-base, arctic-embed-m-v2.0.

Post-norm like BERT, with rotary positions and a gated MLP (GeGLU).

Dimensions: B batch, L tokens, D hidden size, H attention heads, d = D / H.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_bert.encoders import bert, nomic_bert
from mlx_bert.encoders.base import EncoderConfig, NameMap, activation, attend
from mlx_bert.encoders.cpu import by_rows, side_by_side
from mlx_bert.encoders.rotary import Rotary, rope_parameters, rotary, rotate

THETA = 160_000.0
OLDER_THETA = 10_000.0  # the default of Alibaba's own code

NAMES = NameMap(
    prefix="gte.",
    table={
        "embeddings.word": "embeddings.word_embeddings",
        "embeddings.token_type": "embeddings.token_type_embeddings",
        "embeddings.norm": "embeddings.LayerNorm",
        "layers.{n}.attention.qkv": (
            "layers.{n}.self_attn.q_proj",
            "layers.{n}.self_attn.k_proj",
            "layers.{n}.self_attn.v_proj",
        ),
        "layers.{n}.attention.out": "layers.{n}.self_attn.o_proj",
        "layers.{n}.attention_norm": "layers.{n}.post_attention_layernorm",
        "layers.{n}.mlp.up": ("layers.{n}.mlp.up_proj", "layers.{n}.mlp.gate_proj"),
        "layers.{n}.mlp.down": "layers.{n}.mlp.down_proj",
        "layers.{n}.mlp_norm": "layers.{n}.post_mlp_layernorm",
        "pooler.dense": "pooler.dense",
    },
    # Alibaba's own code on the Hub (Alibaba-NLP/new-impl).
    older_prefix="new.",
    older={
        "layers.{n}.attention.qkv": "encoder.layer.{n}.attention.qkv_proj",
        "layers.{n}.attention.out": "encoder.layer.{n}.attention.o_proj",
        "layers.{n}.attention_norm": "encoder.layer.{n}.attn_ln",
        "layers.{n}.mlp.up": "encoder.layer.{n}.mlp.up_gate_proj",
        "layers.{n}.mlp.down": "encoder.layer.{n}.mlp.down_proj",
        "layers.{n}.mlp_norm": "encoder.layer.{n}.mlp_ln",
    },
)

# Keys of Alibaba's own code that decide about numbers -> the values that mean this architecture; None is always one.
OLDER_VALUES: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("rope",),
    "layer_norm_type": ("layer_norm",),
    "logn_attention_scale": (False,),
    "pack_qkv": (True,),
}
OUTDATED = (
    *OLDER_VALUES,
    *("auto_map", "logn_attention_clip1", "unpad_inputs", "use_memory_efficient_attention"),
    *("rope_theta", "rope_scaling"),
)


@dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """The keys of a GTE ``config.json``; defaults are transformers'. Those of ``model_type`` "new" are read too."""

    model_type: str = "gte"
    vocab_size: int = 250048
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.0
    max_position_embeddings: int = 8192
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 1
    rope_parameters: dict[str, Any] | None = None

    @classmethod
    def modernise(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        for key, values in OLDER_VALUES.items():
            if config.get(key) is not None and config[key] not in values:
                raise ValueError(
                    f"[gte] expected {key} to be {' or '.join(map(repr, (None, *values)))} but got {config[key]!r}. "
                    "This variant of the architecture is not supported."
                )
        rope = rope_parameters(config, OLDER_THETA if config.get("model_type") == "new" else THETA)
        if rope["rope_type"] == "ntk":
            head_size = config.get("hidden_size", cls.hidden_size) // config.get(
                "num_attention_heads", cls.num_attention_heads
            )
            rope = ntk_as_linear(rope, head_size)
        new = {key: value for key, value in config.items() if key not in OUTDATED}
        return {**new, "model_type": "gte", "rope_parameters": rope}

    @property
    def rotary(self) -> Rotary:
        return rotary(self.rope_parameters or {"rope_theta": THETA}, self.model_type)

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.hidden_act)
        self.rotary  # noqa: B018 - raises for what is not supported


def ntk_as_linear(rope: Mapping[str, Any], head_size: int) -> dict[str, Any]:
    """Alibaba's fixed NTK scaling (https://kexue.fm/archives/9706) as the linear scaling that it equals.

    It turns pair ``i`` of a head by ``(theta * factor) ** (-2i / d) * factor ** (-2 / d)`` per position.
    """
    if rope.get("mixed_b") is not None:
        raise ValueError("[gte] rope_scaling with mixed_b is not supported. Choose a checkpoint without it.")
    factor = rope["factor"]
    return {"rope_type": "linear", "rope_theta": rope["rope_theta"] * factor, "factor": factor ** (2 / head_size)}


class Embeddings(nn.Module):
    """``LayerNorm(word + token type)``, without the second where the config has no types."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.has_types = config.type_vocab_size > 0
        if self.has_types:
            self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.num_types = config.type_vocab_size
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def __call__(self, input_ids: mx.array, token_type_ids: mx.array | None) -> mx.array:
        embeddings = self.word(input_ids)
        if self.has_types:
            if token_type_ids is None or self.num_types == 1:
                token_type_ids = mx.zeros((1, 1), dtype=mx.int32)
            embeddings = embeddings + self.token_type(token_type_ids)
        return self.dropout(self.norm(embeddings))


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.rope = config.rotary
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def __call__(
        self, x: mx.array, mask: mx.array | None, position_ids: mx.array | None, return_weights: bool
    ) -> tuple[mx.array, mx.array | None]:
        B, L, _ = x.shape
        q, k, v = by_rows(self.qkv, x).reshape(B, L, 3, self.num_heads, -1).transpose(2, 0, 3, 1, 4)
        q, k = side_by_side(lambda x: rotate(x, self.rope, position_ids), q, k)
        x, weights = attend(q, k, v, mask, self.dropout_prob if self.training else 0.0, return_weights)
        return by_rows(self.out, x), weights


class MLP(nn.Module):
    """GeGLU: ``down(a * act(gate))`` with ``a, gate`` the halves of ``up(x)``; only ``down`` has a bias."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self._act = activation(config.hidden_act)

    def __call__(self, x: mx.array) -> mx.array:
        x, gate = mx.split(self.up(x), 2, axis=-1)
        return self.down(self.dropout(x * self._act(gate)))


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
        self, x: mx.array, mask: mx.array | None, position_ids: mx.array | None, return_weights: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        attended, weights = self.attention(x, mask, position_ids, return_weights)
        x = self.attention_norm(x + self.dropout(attended))
        return by_rows(lambda x: self.mlp_norm(x + self.dropout(self.mlp(x))), x), weights


class Model(nomic_bert.Model):
    """The encoder; called as :class:`mlx_bert.encoders.nomic_bert.Model` is."""

    def __init__(self, config: Config) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = [Layer(config) for _ in range(config.num_hidden_layers)]
        self.pooler = bert.Pooler(config)  # in classifiers of this architecture only
