"""BERT with a convolutional network over its hidden states: n-gram features beside contextual ones.

Convolutions of several widths (Kim 2014, https://arxiv.org/abs/1408.5882) and dilations give K features for each token;
attention weighs them; highway layers (Srivastava et al. 2015, https://arxiv.org/abs/1505.00387) refine them.
A pretrained BERT can be loaded under this architecture: its weights get a new network.

Dimensions: B batch, L tokens, H BERT's hidden size, C channels, K features, D = ``fusion_hidden_size``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_bert.encoders import bert, cpu
from mlx_bert.encoders.base import EncoderOutput, NameMap

CNN = "cnn."  # how the network's tensors begin, in memory and on disk


def add_network(weights: dict[str, mx.array], config: Config) -> dict[str, mx.array]:
    """Weights of a plain BERT get those of a new network beside them; others stay as they are."""
    if not any(name.startswith(CNN) for name in weights):
        weights |= {CNN + name: array for name, array in tree_flatten(Network(config).parameters())}
    return weights


NAMES = NameMap(
    prefix="bert.",
    table={memory: disk for memory, disk in bert.TABLE.items() if not memory.startswith("pooler")}
    | {
        name: name
        for name in (
            "cnn.convolutions.{n}",
            "cnn.dilated.convolutions.{n}",
            "cnn.dilated.norm",
            "cnn.fusion.hidden",
            "cnn.fusion.score",
            "cnn.fusion.out",
            "cnn.fusion.norm",
            "cnn.highway.{n}.transform",
            "cnn.highway.{n}.gate",
            "cnn.pooled_projection",
            "cnn.pooled_norm",
            "cnn.token_projection",
        )
    },
    prepare=add_network,
)


@dataclass(frozen=True, kw_only=True)
class Config(bert.Config):
    """The keys of a BERT ``config.json``, and of the network.

    Attributes:
        cnn_kernel_sizes: widths of the convolutions, in tokens.
        cnn_num_filters: channels C of each.
        use_dilated_conv, dilation_rates: one more feature, the mean of width-3 convolutions with these dilations.
        use_attention_fusion: weigh the features by attention; otherwise they stand side by side (K * C channels).
        use_highway: two highway layers on top.
        cnn_dropout: probability inside the network.
        fusion_hidden_size: width D of what comes out, for tokens and for the pooled vector.
    """

    model_type: str = "cnn_hybrid"
    cnn_kernel_sizes: tuple[int, ...] = (2, 3, 4, 5)
    cnn_num_filters: int = 128
    use_dilated_conv: bool = True
    dilation_rates: tuple[int, ...] = (1, 2, 4)
    use_attention_fusion: bool = True
    use_highway: bool = True
    cnn_dropout: float = 0.5
    fusion_hidden_size: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("cnn_kernel_sizes", "dilation_rates"):
            object.__setattr__(self, key, tuple(getattr(self, key)))
        sizes = (*self.cnn_kernel_sizes, *self.dilation_rates, self.cnn_num_filters, self.fusion_hidden_size)
        if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
            raise ValueError(f"[cnn_hybrid] expected positive integers as sizes of the network but got {sizes}.")
        if not self.cnn_kernel_sizes or (self.use_dilated_conv and not self.dilation_rates):
            raise ValueError("[cnn_hybrid] expected cnn_kernel_sizes and dilation_rates to hold a number at least.")

    @property
    def output_size(self) -> int:
        return self.fusion_hidden_size

    @property
    def unused_tensors(self) -> frozenset[str]:
        """A BERT's own pooler: the network brings another."""
        return frozenset({"pooler.dense.weight", "pooler.dense.bias"})

    def to_dict(self) -> dict[str, Any]:
        lists = {key: list(getattr(self, key)) for key in ("cnn_kernel_sizes", "dilation_rates")}
        return {**super().to_dict(), **lists}


def same_length(x: mx.array, kernel_size: int, dilation: int = 1) -> mx.array:
    """``(B, L, C)`` with zeros around it, so that a convolution gives L tokens again; token ``t`` of even widths sees
    one more to its left than to its right."""
    around = dilation * (kernel_size - 1)
    return mx.pad(x, [(0, 0), ((around + 1) // 2, around // 2), (0, 0)])


class Dilated(nn.Module):
    """``norm(mean over dilations of gelu(conv_3(x)))``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.rates = config.dilation_rates
        channels = config.cnn_num_filters
        self.convolutions = [nn.Conv1d(config.hidden_size, channels, 3, dilation=rate) for rate in self.rates]
        self.dropout = nn.Dropout(config.cnn_dropout)
        self.norm = nn.LayerNorm(channels)

    def __call__(self, x: mx.array) -> mx.array:
        pairs = zip(self.convolutions, self.rates, strict=True)
        total = sum(cpu.gelu(convolution(same_length(x, 3, rate))) for convolution, rate in pairs)
        return self.norm(self.dropout(total / len(self.rates)))


class Fusion(nn.Module):
    """Attention over features: one weight for each feature of a row, from its mean over real tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, max(channels // 2, 1))
        self.score = nn.Linear(max(channels // 2, 1), 1)
        self.out = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)

    def __call__(self, features: list[mx.array], real: mx.array) -> mx.array:
        stacked = mx.stack(features, axis=1)  # (B, K, L, C)
        weights = real.astype(mx.float32)[:, None]  # (B, 1, L, 1)
        means = mx.sum(stacked * weights, axis=2) / mx.maximum(mx.sum(weights, axis=2), 1)
        scores = self.score(mx.tanh(self.hidden(means.astype(stacked.dtype))))  # (B, K, 1)
        shares = mx.softmax(scores, axis=1, precise=True)
        return self.norm(self.out(mx.sum(stacked * shares[..., None], axis=1)))


class Highway(nn.Module):
    """``g * relu(W x) + (1 - g) * x`` with ``g = sigmoid(W_g x)``, mostly passing ``x`` on at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.transform = nn.Linear(channels, channels)
        self.gate = nn.Linear(channels, channels)
        self.gate.bias = mx.full((channels,), -1.0)

    def __call__(self, x: mx.array) -> mx.array:
        gate = mx.sigmoid(self.gate(x))
        return gate * nn.relu(self.transform(x)) + (1 - gate) * x


class Network(nn.Module):
    """What stands on BERT: n-gram features for each token, and the two outputs."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.kernel_sizes = config.cnn_kernel_sizes
        channels = config.cnn_num_filters
        self.convolutions = [nn.Conv1d(config.hidden_size, channels, size) for size in self.kernel_sizes]
        self.dilated = Dilated(config) if config.use_dilated_conv else None
        self.dropout = nn.Dropout(config.cnn_dropout)
        self.fusion = Fusion(channels) if config.use_attention_fusion else None
        if not config.use_attention_fusion:
            channels *= len(self.kernel_sizes) + config.use_dilated_conv
        self.highway = [Highway(channels) for _ in range(2 if config.use_highway else 0)]
        self.token_projection = nn.Linear(config.hidden_size + channels, config.fusion_hidden_size)
        self.pooled_projection = nn.Linear(config.hidden_size + channels, config.fusion_hidden_size)
        self.pooled_norm = nn.LayerNorm(config.fusion_hidden_size)
        self.pooled_dropout = nn.Dropout(0.1)

    def __call__(self, states: mx.array, attention_mask: mx.array | None) -> tuple[mx.array, mx.array]:
        """Hidden states ``(B, L, H)`` -> token states ``(B, L, D)`` and the pooled vector ``(B, D)``."""
        mask = mx.ones(states.shape[:2], dtype=mx.bool_) if attention_mask is None else attention_mask.astype(mx.bool_)
        real = mask[..., None]
        x = mx.where(real, states, mx.zeros_like(states))  # what stands at padding never reaches a real token
        pairs = zip(self.convolutions, self.kernel_sizes, strict=True)
        features = [self.dropout(nn.relu(convolution(same_length(x, size)))) for convolution, size in pairs]
        if self.dilated is not None:
            features.append(self.dilated(x))
        fused = mx.concatenate(features, axis=-1) if self.fusion is None else self.fusion(features, real)
        for highway in self.highway:
            fused = highway(fused)
        tokens = self.token_projection(mx.concatenate([states, fused], axis=-1))
        counted = real | ~mx.any(real, axis=1, keepdims=True)  # a row of padding alone stays finite
        largest = mx.max(mx.where(counted, fused, mx.finfo(fused.dtype).min), axis=1)
        first = mx.take_along_axis(states, mx.argmax(mask, axis=1)[:, None, None], axis=1)[:, 0]
        pooled = self.pooled_norm(self.pooled_projection(mx.concatenate([first, largest], axis=-1)))
        return tokens, self.pooled_dropout(nn.relu(pooled))


class Model(bert.Model):
    """The encoder. The hidden states that can be asked for are BERT's, ``(B, L, H)`` each."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        del self.pooler
        self.cnn = Network(config)

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
        output = super().__call__(
            input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states, output_attentions
        )
        tokens, pooled = self.cnn(output.last_hidden_state, attention_mask)
        return output._replace(last_hidden_state=tokens, pooled=pooled)
