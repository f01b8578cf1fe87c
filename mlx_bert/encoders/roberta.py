"""RoBERTa (Liu et al. 2019, https://arxiv.org/abs/1907.11692), XLM-RoBERTa and CamemBERT.

BERT's layers; only the positions differ: they count real tokens, start behind ``pad_token_id``, and padding stands at
``pad_token_id`` itself. Dimensions: B batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_bert.encoders import bert
from mlx_bert.encoders.base import EncoderOutput, NameMap, check_inputs

NAMES = NameMap(
    prefix="roberta.",
    table=bert.TABLE,
    # Jina's own code on the Hub (jinaai/xlm-roberta-flash-implementation), with learned positions: jina-reranker-v2.
    older={
        "embeddings.norm": "emb_ln",
        "layers.{n}.attention.qkv": "encoder.layers.{n}.mixer.Wqkv",
        "layers.{n}.attention.out": "encoder.layers.{n}.mixer.out_proj",
        "layers.{n}.attention_norm": "encoder.layers.{n}.norm1",
        "layers.{n}.mlp.up": "encoder.layers.{n}.mlp.fc1",
        "layers.{n}.mlp.down": "encoder.layers.{n}.mlp.fc2",
        "layers.{n}.mlp_norm": "encoder.layers.{n}.norm2",
    },
)


@dataclass(frozen=True, kw_only=True)
class Config(bert.Config):
    """The keys of a RoBERTa ``config.json``; defaults are transformers' ``RobertaConfig``'s."""

    model_type: str = "roberta"
    vocab_size: int = 50265
    pad_token_id: int = 1

    @classmethod
    def modernise(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Without what says that Jina's own code runs the same architecture with fused kernels."""
        if "use_flash_attn" not in config:
            return dict(config)
        return {key: value for key, value in config.items() if key not in ("auto_map", "use_flash_attn")}

    @property
    def max_tokens(self) -> int:
        """Positions 0 to ``pad_token_id`` are not for tokens."""
        return self.max_position_embeddings - self.pad_token_id - 1


def token_positions(input_ids: mx.array, attention_mask: mx.array | None, pad_token_id: int) -> mx.array:
    """Positions ``(B, L)``: ``cumsum(real) * real + pad_token_id``, so the first token stands at ``pad_token_id + 1``.

    A token is real by the mask; without one, by its id. (transformers looks at the id alone, so that a pad id inside a
    text, or other content under the mask, shifts its positions.)
    """
    real = (input_ids != pad_token_id) if attention_mask is None else attention_mask.astype(mx.bool_)
    real = real.astype(mx.int32)
    return mx.cumsum(real, axis=1) * real + pad_token_id


class Model(bert.Model):
    """The encoder; see :class:`mlx_bert.encoders.bert.Model`."""

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
        if position_ids is None:
            position_ids = token_positions(input_ids, attention_mask, self.config.pad_token_id)
        return super().__call__(
            input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states, output_attentions
        )
