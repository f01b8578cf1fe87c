"""Feed-forward blocks by name: (..., D) -> (..., output_dim).

Dimension key: B batch, L tokens, D input size, E output size, F inner size (E times the expansion).

Each is called as ``ffn(x, attention_mask=None)``. All but `CountingFFN` treat every position alone, so the mask matters
only there. The formulas leave out biases; a linear layer has one unless the docstring says otherwise.
"""

import inspect
import math

import mlx.core as mx
import mlx.nn as nn

from heads.activations import create_activation
from heads.initialization import glorot_linear, he_linear, orthogonal_linear, orthonormality_loss
from heads.lookup import build_by_name, find_by_name
from heads.masks import as_boolean_mask, zero_padding
from heads.normalization import ZeroCenteredRMSNorm


def inner_size(output_dim: int, expansion: float) -> int:
    """F: the output size times the expansion, as an integer of at least 1."""
    size = int(output_dim * expansion)
    if size < 1:
        raise ValueError(
            f"[ffn] expected an inner size of at least 1 but got {size}. Raise the expansion ({expansion})."
        )
    return size


class MLP(nn.Module):
    """``W2 drop(act(W1 x))``.

    Args:
        dim: Input size D.
        output_dim: E; None: D.
        expansion: F / E.
        dropout: Rate after the activation.
        activation: Name of the activation.
    """

    def __init__(
        self,
        dim: int,
        output_dim: int | None = None,
        expansion: float = 4,
        dropout: float = 0.0,
        activation: str = "gelu",
    ):
        super().__init__()
        output_dim = output_dim or dim
        inner = inner_size(output_dim, expansion)
        self.up = glorot_linear(dim, inner)
        self.down = glorot_linear(inner, output_dim)
        self.activation = create_activation(activation)
        self.dropout = nn.Dropout(dropout)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        return self.down(self.dropout(self.activation(self.up(x)))).astype(x.dtype)


class SwinMLP(MLP):
    """``drop(W2 drop(gelu(W1 x)))``: `MLP` with a second dropout (Liu et al. 2021)."""

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        return self.dropout(super().__call__(x))


class ResidualFFN(MLP):
    """``W2 drop(relu(W1 x)) + Wr x``, a linear skip that is always there."""

    def __init__(
        self,
        dim: int,
        output_dim: int | None = None,
        expansion: float = 4,
        dropout: float = 0.0,
        activation: str = "relu",
    ):
        super().__init__(dim, output_dim, expansion, dropout, activation)
        self.skip = glorot_linear(dim, output_dim or dim)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        return (super().__call__(x) + self.skip(x)).astype(x.dtype)


class SwiGLU(nn.Module):
    """``drop(Wd (silu(Wg x) * Wu x))`` without biases (Shazeer 2020).

    The inner size is ``2/3 E expansion`` rounded up to a multiple of 256: 768 -> 2048, 1024 -> 2816.

    Args:
        dim: Input size D.
        output_dim: E; None: D.
        expansion: As above.
        dropout: Rate on the output.
        multiple_of: What the inner size is rounded up to.
    """

    def __init__(
        self,
        dim: int,
        output_dim: int | None = None,
        expansion: float = 4,
        dropout: float = 0.0,
        multiple_of: int = 256,
    ):
        super().__init__()
        output_dim = output_dim or dim
        inner = multiple_of * math.ceil(inner_size(output_dim, expansion * 2 / 3) / multiple_of)
        self.gate_up = glorot_linear(dim, 2 * inner, bias=False)
        self.down = glorot_linear(inner, output_dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        gate, value = mx.split(self.gate_up(x), 2, axis=-1)
        return self.dropout(self.down(nn.silu(gate) * value)).astype(x.dtype)


class GatedFFN(nn.Module):
    """``Wo drop(act(g) * v)`` with ``[g, v] = Wi x``, the gate first.

    Args:
        dim: Input size D.
        output_dim: E; None: D.
        expansion: F / E.
        dropout: Rate on the product.
        activation: Name of the gate's activation.
    """

    def __init__(
        self,
        dim: int,
        output_dim: int | None = None,
        expansion: float = 4,
        dropout: float = 0.0,
        activation: str = "gelu",
    ):
        super().__init__()
        output_dim = output_dim or dim
        inner = inner_size(output_dim, expansion)
        self.gate_value = glorot_linear(dim, 2 * inner)
        self.down = glorot_linear(inner, output_dim)
        self.activation = create_activation(activation)
        self.dropout = nn.Dropout(dropout)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        gate, value = mx.split(self.gate_value(x), 2, axis=-1)
        return self.down(self.dropout(self.activation(gate) * value)).astype(x.dtype)


class GeGLU(GatedFFN):
    """`GatedFFN` with an exact GELU gate (Shazeer 2020)."""

    def __init__(self, dim: int, output_dim: int | None = None, expansion: float = 4, dropout: float = 0.0):
        super().__init__(dim, output_dim, expansion, dropout, "gelu")


class GLU(GatedFFN):
    """`GatedFFN` with a swish gate."""

    def __init__(
        self,
        dim: int,
        output_dim: int | None = None,
        expansion: float = 4,
        dropout: float = 0.0,
        activation: str = "swish",
    ):
        super().__init__(dim, output_dim, expansion, dropout, activation)


class OrthoGLU(GeGLU):
    """`GeGLU` with orthogonal start weights and a penalty that keeps both projections near orthonormal.

    Args:
        dim: Input size D.
        output_dim: E; None: D.
        expansion: F / E.
        dropout: Rate on the product.
        regularization: Strength of the penalty, see `regularization_loss`.
    """

    def __init__(
        self,
        dim: int,
        output_dim: int | None = None,
        expansion: float = 4,
        dropout: float = 0.0,
        regularization: float = 1e-3,
    ):
        super().__init__(dim, output_dim, expansion, dropout)
        self.regularization = regularization
        inner, output_dim = self.down.weight.shape[1], self.down.weight.shape[0]
        self.gate_value = orthogonal_linear(dim, 2 * inner)
        self.down = orthogonal_linear(inner, output_dim)

    def regularization_loss(self) -> mx.array:
        """Scalar to add to the loss: the strength times the projections' distance from orthonormality."""
        return self.regularization * (
            orthonormality_loss(self.gate_value.weight) + orthonormality_loss(self.down.weight)
        )


class GatedMLP(nn.Module):
    """``out_act(Wd drop(act(Wg x) * act(Wu x)))``, the same activation on both branches.

    Args:
        dim: Input size D.
        output_dim: E; None: D.
        expansion: F / E.
        dropout: Rate on the product.
        activation: Name of the activation of both branches.
        output_activation: Name of the activation of the output.
    """

    def __init__(
        self,
        dim: int,
        output_dim: int | None = None,
        expansion: float = 4,
        dropout: float = 0.0,
        activation: str = "relu",
        output_activation: str = "linear",
    ):
        super().__init__()
        output_dim = output_dim or dim
        inner = inner_size(output_dim, expansion)
        self.gate_up = glorot_linear(dim, 2 * inner)
        self.down = glorot_linear(inner, output_dim)
        self.activation = create_activation(activation)
        self.output_activation = create_activation(output_activation)
        self.dropout = nn.Dropout(dropout)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        # Each half on its own: some activations look at their whole last axis.
        gate, value = mx.split(self.gate_up(x), 2, axis=-1)
        product = self.activation(gate) * self.activation(value)
        return self.output_activation(self.down(self.dropout(product))).astype(x.dtype)


class _Stream(nn.Module):
    """``sigmoid(W2 gelu(LayerNorm(W1 x)))``, one of the two streams of `DifferentialFFN`."""

    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.up = glorot_linear(dim, inner)
        self.norm = nn.LayerNorm(inner, eps=1e-6)
        self.down = glorot_linear(inner, inner // 2)

    def __call__(self, x: mx.array) -> mx.array:
        return mx.sigmoid(self.down(nn.gelu(self.norm(self.up(x)))))


class DifferentialFFN(nn.Module):
    """``Wo drop(norm(P(relu(x)) - N(relu(-x))))``: separate streams for what is positive and what is negative.

    Each stream is Linear(F), layer norm, GELU, Linear(F / 2), sigmoid; the norm has no bias.

    Args:
        dim: Input size D.
        output_dim: E; None: D.
        expansion: F / E; F must be even.
        dropout: Rate after the norm.
        orthogonality: Strength of the orthonormality penalty on the streams' weights, see `regularization_loss`.
        weight_decay: Strength of the L2 penalty on them.
    """

    def __init__(
        self,
        dim: int,
        output_dim: int | None = None,
        expansion: float = 4,
        dropout: float = 0.0,
        orthogonality: float = 1e-3,
        weight_decay: float = 1e-4,
    ):
        super().__init__()
        output_dim = output_dim or dim
        inner = inner_size(output_dim, expansion)
        if inner % 2:
            raise ValueError(
                f"[differential FFN] expected an even inner size but got {inner}. Change the expansion ({expansion})."
            )
        self.positive = _Stream(dim, inner)
        self.negative = _Stream(dim, inner)
        self.norm = ZeroCenteredRMSNorm(inner // 2)
        self.dropout = nn.Dropout(dropout)
        self.down = glorot_linear(inner // 2, output_dim)
        self.orthogonality = orthogonality
        self.weight_decay = weight_decay

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        difference = self.positive(mx.maximum(x, 0)) - self.negative(mx.maximum(-x, 0))
        return self.down(self.dropout(self.norm(difference))).astype(x.dtype)

    def regularization_loss(self) -> mx.array:
        """Scalar to add to the loss: orthonormality and L2 penalties on the four weights of the streams."""
        weights = [layer.weight for stream in (self.positive, self.negative) for layer in (stream.up, stream.down)]
        return sum(
            self.orthogonality * orthonormality_loss(weight) + self.weight_decay * mx.sum(mx.square(weight))
            for weight in weights
        )


class PowerMLP(nn.Module):
    """``drop(relu(W1 x)^k + W2 silu(x))``, W2 without a bias (Qiu et al. 2024). He normal start; no inner size.

    Args:
        dim: Input size D.
        output_dim: E; None: D.
        dropout: Rate on the output.
        k: The power.
    """

    def __init__(self, dim: int, output_dim: int | None = None, dropout: float = 0.0, k: int = 3):
        super().__init__()
        self.k = k
        self.power = he_linear(dim, output_dim or dim)
        self.basis = he_linear(dim, output_dim or dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        # A third power leaves the range of float16 from 40 on.
        power = mx.maximum(self.power(x).astype(mx.float32), 0) ** self.k
        largest = mx.finfo(x.dtype).max
        return self.dropout(mx.minimum(power + self.basis(nn.silu(x)), largest).astype(x.dtype))


class LogicFFN(nn.Module):
    """Soft logic: ``drop(Wo sum_i g_i op_i)`` of AND ``a b``, OR ``a + b - a b``, XOR ``(a - b)^2``.

    ``a, b = sigmoid(split(W x))``; the gate ``g = softmax(Wg x / temperature)`` chooses an operation at
    each position.

    Args:
        dim: Input size D.
        output_dim: E; None: D.
        expansion: F / E; a and b have F features each.
        dropout: Rate on the output.
        temperature: Of the gate.
    """

    def __init__(
        self,
        dim: int,
        output_dim: int | None = None,
        expansion: float = 4,
        dropout: float = 0.0,
        temperature: float = 1.0,
    ):
        super().__init__()
        output_dim = output_dim or dim
        inner = inner_size(output_dim, expansion)
        self.temperature = temperature
        self.operands = glorot_linear(dim, 2 * inner)
        self.gate = glorot_linear(dim, 3)
        self.down = glorot_linear(inner, output_dim)
        self.dropout = nn.Dropout(dropout)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        a, b = mx.split(mx.sigmoid(self.operands(x)), 2, axis=-1)
        both = a * b
        gate = mx.softmax(self.gate(x).astype(mx.float32) / self.temperature, axis=-1)[..., None]
        mixed = gate[..., 0, :] * both + gate[..., 1, :] * (a + b - both) + gate[..., 2, :] * mx.square(a - b)
        return self.dropout(self.down(mixed.astype(x.dtype))).astype(x.dtype)


class CountingFFN(nn.Module):
    """Counts features along the sequence, both ways, and blends the counts with the input.

    ``k = sigmoid(Wk x)``; ``c_s = [sum_{t<=s} k_t, sum_{t>=s} k_t]`` over real tokens; ``g = sigmoid(Wg x)``;
    ``drop(g * gelu(Wc c) + (1 - g) * Wx x)``. A vector (B, D) is a sequence of one token.

    Args:
        dim: Input size D.
        output_dim: E; None: D.
        expansion: F / E; F features are counted.
        dropout: Rate on the output.
    """

    def __init__(self, dim: int, output_dim: int | None = None, expansion: float = 4, dropout: float = 0.0):
        super().__init__()
        output_dim = output_dim or dim
        inner = inner_size(output_dim, expansion)
        self.key = glorot_linear(dim, inner)
        self.counts = glorot_linear(2 * inner, output_dim)
        self.gate = glorot_linear(dim, output_dim)
        self.input = glorot_linear(dim, output_dim)
        self.dropout = nn.Dropout(dropout)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        keys = mx.sigmoid(self.key(x).astype(mx.float32))
        if x.ndim == 2:
            counts = mx.concatenate([keys, keys], axis=-1)
        else:
            mask = None if attention_mask is None else as_boolean_mask(attention_mask, x.shape[:2])
            keys = zero_padding(keys, mask)
            counts = mx.concatenate([mx.cumsum(keys, axis=1), mx.cumsum(keys, axis=1, reverse=True)], axis=-1)
        gate = mx.sigmoid(self.gate(x))
        blended = gate * nn.gelu(self.counts(counts)) + (1 - gate) * self.input(x)
        return self.dropout(blended).astype(x.dtype)


FFNS: dict[str, type[nn.Module]] = {
    "mlp": MLP,
    "swiglu": SwiGLU,
    "geglu": GeGLU,
    "gated_mlp": GatedMLP,
    "differential": DifferentialFFN,
    "residual": ResidualFFN,
    "swin_mlp": SwinMLP,
    "glu": GLU,
    "power_mlp": PowerMLP,
    "orthoglu": OrthoGLU,
    "logic": LogicFFN,
    "counting": CountingFFN,
}


def create_ffn(
    name: str, dim: int, output_dim: int | None = None, expansion: float = 4, dropout: float = 0.0, **options
) -> nn.Module:
    """Build the feed-forward block called ``name``.

    Args:
        name: A key of `FFNS`.
        dim: Input size D.
        output_dim: Output size E; None: D.
        expansion: Inner size over output size (power_mlp has no inner size).
        dropout: Rate, where each block's docstring says.
        options: Further arguments of that block.

    Raises:
        ValueError: for an unknown name or option.
    """
    if "expansion" in inspect.signature(find_by_name(FFNS, name, "ffn_type")).parameters:
        options = {"expansion": expansion, **options}
    options = {"output_dim": output_dim, "dropout": dropout, **options}
    return build_by_name(FFNS, name, "ffn_type", (dim,), options)
