"""ELECTRA (Clark et al. 2020, https://arxiv.org/abs/2003.10555): BERT's layers on embeddings of a size of their own.

Dimensions: B batch, L tokens, E embedding size, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_bert.encoders import bert
from mlx_bert.encoders.base import EncoderOutput, NameMap, check_inputs, key_padding_mask

TABLE = {memory: disk for memory, disk in bert.TABLE.items() if not memory.startswith("pooler.")}
NAMES = NameMap(prefix="electra.", table={**TABLE, "embeddings.project": "embeddings_project"})


@dataclass(frozen=True, kw_only=True)
class Config(bert.Config):
    """The keys of an ELECTRA ``config.json``; defaults are google/electra-small-discriminator's."""

    model_type: str = "electra"
    embedding_size: int = 128
    hidden_size: int = 256
    num_attention_heads: int = 4
    intermediate_size: int = 1024


class Embeddings(nn.Module):
    """``project(LayerNorm(word + token type + position))``; no projection where the sizes are equal."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size = config.embedding_size
        self.word = nn.Embedding(config.vocab_size, size)
        self.position = nn.Embedding(config.max_position_embeddings, size)
        self.num_segments = config.type_vocab_size
        self.token_type = nn.Embedding(config.type_vocab_size, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.project = nn.Linear(size, config.hidden_size) if size != config.hidden_size else nn.Identity()

    def __call__(self, input_ids: mx.array, token_type_ids: mx.array | None, position_ids: mx.array | None) -> mx.array:
        if token_type_ids is None or self.num_segments == 1:
            token_type_ids = mx.zeros((1, 1), dtype=mx.int32)
        if position_ids is None:
            position_ids = mx.arange(input_ids.shape[1])[None]
        embeddings = self.word(input_ids) + self.token_type(token_type_ids) + self.position(position_ids)
        return self.project(self.dropout(self.norm(embeddings)))


class Model(nn.Module):
    """The encoder of discriminator and generator alike. ELECTRA has no pooler."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = [bert.Layer(config) for _ in range(config.num_hidden_layers)]

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
        for layer in self.layers:
            x, weights = layer(x, mask, output_attentions)
            hidden_states.append(x)
            attentions.append(weights)
        return EncoderOutput(
            x, hidden_states if output_hidden_states else None, attentions if output_attentions else None
        )
