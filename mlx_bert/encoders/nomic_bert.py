"""NomicBERT (Nussbaum et al. 2024, https://arxiv.org/abs/2402.01613): nomic-embed-text, nomic-bert-2048, arctic-m-long.

Post-norm like BERT, with rotary positions, a gated MLP (SwiGLU) and no biases in the projections.

Dimensions: B batch, L tokens, D hidden size, H attention heads, d = D / H.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_bert.encoders import bert
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

THETA = 1000.0
OLDER_THETA = 10_000.0  # the default of Nomic's own code

NAMES = NameMap(
    prefix="nomic_bert.",
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
    # Nomic's own code on the Hub (nomic-ai/nomic-bert-2048, modeling_hf_nomic_bert.py).
    older_prefix="bert.",
    older={
        "embeddings.norm": "emb_ln",
        "layers.{n}.attention.qkv": "encoder.layers.{n}.attn.Wqkv",
        "layers.{n}.attention.out": "encoder.layers.{n}.attn.out_proj",
        "layers.{n}.attention_norm": "encoder.layers.{n}.norm1",
        "layers.{n}.mlp.up": ("encoder.layers.{n}.mlp.fc11", "encoder.layers.{n}.mlp.fc12"),
        "layers.{n}.mlp.down": "encoder.layers.{n}.mlp.fc2",
        "layers.{n}.mlp_norm": "encoder.layers.{n}.norm2",
    },
)

# Nomic's own config keys -> transformers'.
OLDER_KEYS = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "resid_pdrop": "hidden_dropout_prob",
    "attn_pdrop": "attention_probs_dropout_prob",
}
# Values of other keys that Nomic's own code may have and that mean this architecture; None is always one.
OLDER_VALUES: dict[str, tuple[Any, ...]] = {
    "prenorm": (False,),
    "parallel_block": (False,),
    "qkv_proj_bias": (False,),
    "mlp_fc1_bias": (False,),
    "mlp_fc2_bias": (False,),
    "rotary_emb_fraction": (1, 1.0),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (),
    "use_rms_norm": (False,),
    "causal": (False,),
    "num_experts": (0,),
    "moe_every_n_layers": (0, -1),
}
OLDER_ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu", "glu": "sigmoid"}
# Keys that say nothing that a field does not say.
OUTDATED = (
    *OLDER_KEYS,
    *OLDER_VALUES,
    *("activation_function", "rotary_emb_base", "rotary_scaling_factor", "max_trained_positions", "embd_pdrop"),
    *("auto_map", "n_ctx", "summary_type"),
    *("use_flash_attn", "fused_dropout_add_ln", "fused_bias_fc", "use_xentropy", "dense_seq_output"),
    *("pad_vocab_size_multiple", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"),
)


@dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """The keys of a NomicBERT ``config.json``; defaults are transformers'. Nomic's own GPT-like keys are read too."""

    model_type: str = "nomic_bert"
    vocab_size: int = 30528
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "silu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    max_position_embeddings: int = 2048
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    rope_parameters: dict[str, Any] | None = None
    head_dim: int | None = None

    @classmethod
    def modernise(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        new = dict(config)
        if "n_embd" in config or "activation_function" in config:
            for key, values in OLDER_VALUES.items():
                if config.get(key) is not None and config[key] not in values:
                    raise ValueError(
                        f"[nomic_bert] expected {key} to be {' or '.join(map(repr, (None, *values)))} but got "
                        f"{config[key]!r}. This variant of the architecture is not supported."
                    )
            for old, key in OLDER_KEYS.items():
                if config.get(old) is not None:
                    new[key] = config[old]
            name = config.get("activation_function", "swiglu")
            if name not in OLDER_ACTIVATIONS:
                raise ValueError(
                    f"[nomic_bert] expected activation_function to be {', '.join(OLDER_ACTIVATIONS)} but got {name!r}. "
                    "An MLP without a gate is not supported for this architecture."
                )
            new["hidden_act"] = OLDER_ACTIVATIONS[name]
            new["rope_theta"] = config.get("rotary_emb_base", OLDER_THETA)
            if config.get("rotary_scaling_factor") is not None:
                new["rope_scaling"] = {"rope_type": "dynamic", "factor": config["rotary_scaling_factor"]}
                new["max_position_embeddings"] = config.get("max_trained_positions", cls.max_position_embeddings)
            new = {key: value for key, value in new.items() if key not in OUTDATED}
        new["rope_parameters"] = rope_parameters(new, THETA)
        return {key: value for key, value in new.items() if key not in ("rope_theta", "rope_scaling", "auto_map")}

    @property
    def rotary(self) -> Rotary:
        return rotary(self.rope_parameters or {"rope_theta": THETA}, self.model_type)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("head_dim", None, self.hidden_size // self.num_attention_heads)
        activation(self.hidden_act)
        self.rotary  # noqa: B018 - raises for what is not supported


class Embeddings(nn.Module):
    """``LayerNorm(word + token type)``; positions come in through rotary attention."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def __call__(self, input_ids: mx.array, token_type_ids: mx.array | None) -> mx.array:
        if token_type_ids is None:
            token_type_ids = mx.zeros((1, 1), dtype=mx.int32)
        return self.dropout(self.norm(self.word(input_ids) + self.token_type(token_type_ids)))


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.rope = config.rotary
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def __call__(
        self, x: mx.array, mask: mx.array | None, position_ids: mx.array | None, return_weights: bool
    ) -> tuple[mx.array, mx.array | None]:
        B, L, _ = x.shape
        q, k, v = by_rows(self.qkv, x).reshape(B, L, 3, self.num_heads, -1).transpose(2, 0, 3, 1, 4)
        q, k = side_by_side(lambda x: rotate(x, self.rope, position_ids), q, k)
        x, weights = attend(q, k, v, mask, self.dropout_prob if self.training else 0.0, return_weights)
        return by_rows(self.out, x), weights


class MLP(nn.Module):
    """SwiGLU: ``down(a * act(gate))`` with ``a, gate`` the halves of ``up(x)``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self._act = activation(config.hidden_act)

    def __call__(self, x: mx.array) -> mx.array:
        x, gate = mx.split(self.up(x), 2, axis=-1)
        return self.down(x * self._act(gate))


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


class Model(nn.Module):
    """The encoder. ``pooler`` takes the first token's state ``(B, D)``; None if the checkpoint has none."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = [Layer(config) for _ in range(config.num_hidden_layers)]
        self.pooler = bert.Pooler(config)  # in classifiers of this architecture only

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
            position_ids: ``(B, L)`` or ``(1, L)``; None for 0, 1, 2, ...
        """
        check_inputs(self.config, input_ids, attention_mask)
        mask = key_padding_mask(attention_mask)
        x = self.embeddings(input_ids, token_type_ids)
        hidden_states, attentions = [x], []
        for layer in self.layers:
            x, weights = layer(x, mask, position_ids, output_attentions)
            hidden_states.append(x)
            attentions.append(weights)
        return EncoderOutput(
            x, hidden_states if output_hidden_states else None, attentions if output_attentions else None
        )
