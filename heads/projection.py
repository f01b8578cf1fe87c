"""What stands between the hidden states and the output layer of a head: task attention, hidden blocks, FFN.

Dimension key: B batch, L tokens, D input width, F width of a hidden block.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from heads.activations import create_activation
from heads.config import ActivationType, HeadConfig
from heads.initialization import glorot_linear
from heads.normalization import create_normalization


def activation_of(config: HeadConfig) -> Callable[[mx.array], mx.array]:
    """Return a new activation of the kind that `config` names (leaky ReLU: slope 0.1 by default)."""
    options = dict(config.activation_options)
    if config.activation == ActivationType.LEAKY_RELU:
        options.setdefault("negative_slope", 0.1)
    return create_activation(config.activation, **options)


class WeightNormLinear(nn.Module):
    """Linear with `w = g * v / |v|` per output, so length and direction are learned apart (Salimans & Kingma 2016)."""

    def __init__(self, input_size: int, output_size: int, bias: bool = True):
        super().__init__()
        self.v = nn.init.glorot_uniform()(mx.zeros((output_size, input_size)))
        self.g = mx.linalg.norm(self.v, axis=1)
        if bias:
            self.bias = mx.zeros((output_size,))

    def __call__(self, x: mx.array) -> mx.array:
        scale = self.g / mx.maximum(mx.linalg.norm(self.v, axis=1), 1e-12)
        y = x @ (mx.expand_dims(scale, 1) * self.v).T
        return y + self.bias if "bias" in self else y


class TaskAttention(nn.Module):
    """One pre-norm self-attention layer of the head's own: `x + Dropout(Attention(Norm(x), mask))`, (B, L, D)."""

    def __init__(self, config: HeadConfig):
        super().__init__()
        from heads.attention import create_attention

        self.norm = create_normalization(config.normalization_type, config.input_size, **config.normalization_options)
        self.attention = create_attention(
            config.attention_type,
            config.input_size,
            num_heads=config.num_attention_heads,
            dropout=config.dropout_prob,
            **config.attention_options,
        )
        self.dropout = nn.Dropout(config.dropout_prob)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        return x + self.dropout(self.attention(self.norm(x, attention_mask), attention_mask))


class HiddenBlock(nn.Module):
    """`Dropout(act(norm(W x + b)))`, or `Dropout(norm(act(W x + b)))` with `norm_after_activation`.

    With `use_residual_connections` the input is added, through a Linear if the widths differ.
    """

    def __init__(self, config: HeadConfig, input_size: int, output_size: int):
        super().__init__()
        build = WeightNormLinear if config.use_weight_norm else glorot_linear
        self.dense = build(input_size, output_size, bias=config.hidden_bias)
        name = config.block_normalization
        options = config.normalization_options if config.use_layer_norm else {}
        self.norm = create_normalization(name, output_size, **options) if name else None
        self.activation = activation_of(config)
        self.dropout = nn.Dropout(config.dropout_prob)
        self.residual = config.use_residual_connections
        if self.residual and input_size != output_size:
            self.skip = glorot_linear(input_size, output_size, bias=False)
        self.norm_after_activation = config.norm_after_activation

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        y = self.dense(x)
        if self.norm is None:
            y = self.activation(y)
        elif self.norm_after_activation:
            y = self.norm(self.activation(y), attention_mask)
        else:
            y = self.activation(self.norm(y, attention_mask))
        y = self.dropout(y)
        if not self.residual:
            return y
        return y + (self.skip(x) if "skip" in self else x)


class NormedBlock(nn.Module):
    """`LayerNorm(Dropout(act(W x + b)))`, the block of the ranking, ensemble and multi-task heads."""

    def __init__(self, input_size: int, output_size: int, activation: str = "relu", dropout: float = 0.1):
        super().__init__()
        self.dense = glorot_linear(input_size, output_size)
        self.activation = create_activation(activation)
        self.dropout = nn.Dropout(dropout)
        self.norm = create_normalization("layer_norm", output_size)

    def __call__(self, x: mx.array) -> mx.array:
        return self.norm(self.dropout(self.activation(self.dense(x))))


class Projection(nn.Module):
    """`[norm] -> dropout -> hidden blocks -> [ffn]`, position by position; the identity when all are switched off.

    Call with `(..., D)` and, for `(B, L, D)`, the boolean mask `(B, L)`; returns `(..., output_size)`.
    """

    def __init__(self, config: HeadConfig, input_size: int):
        super().__init__()
        self.norm = (
            create_normalization(config.normalization_type, input_size, **config.normalization_options)
            if config.use_input_norm
            else None
        )
        self.dropout = nn.Dropout(config.input_dropout)
        sizes = [input_size, *config.hidden_sizes]
        self.blocks = [HiddenBlock(config, *pair) for pair in itertools.pairwise(sizes)]
        self.output_size = sizes[-1]
        self.ffn = None
        if config.use_ffn:
            from heads.ffn import create_ffn

            self.output_size = config.ffn_size or sizes[-1]
            self.ffn = create_ffn(
                config.ffn_type,
                sizes[-1],
                output_dim=self.output_size,
                expansion=config.ffn_expansion_factor,
                dropout=config.dropout_prob,
                **config.ffn_options,
            )

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        if self.norm is not None:
            x = self.norm(x, attention_mask)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, attention_mask)
        return x if self.ffn is None else self.ffn(x, attention_mask)
