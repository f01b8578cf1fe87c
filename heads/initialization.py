"""Start values of weights: truncated normal for scorers and classifiers, Glorot uniform for the other layers."""

import math

import mlx.core as mx
import mlx.nn as nn

INITIALIZER_RANGE = 0.02


def truncated_normal(shape: tuple[int, ...], std: float = INITIALIZER_RANGE) -> mx.array:
    """Normal values with standard deviation ``std``, cut at two of them."""
    return std * mx.random.truncated_normal(-2.0, 2.0, shape)


def truncated_normal_linear(in_dim: int, out_dim: int, bias: bool = True, std: float = INITIALIZER_RANGE) -> nn.Linear:
    """A linear layer with truncated normal weights and zero bias."""
    return _with_weight(nn.Linear(in_dim, out_dim, bias), truncated_normal((out_dim, in_dim), std))


def glorot_linear(in_dim: int, out_dim: int, bias: bool = True) -> nn.Linear:
    """A linear layer with Glorot uniform weights (Glorot & Bengio 2010) and zero bias."""
    bound = math.sqrt(6 / (in_dim + out_dim))
    return _with_weight(nn.Linear(in_dim, out_dim, bias), mx.random.uniform(-bound, bound, (out_dim, in_dim)))


def he_linear(in_dim: int, out_dim: int, bias: bool = True) -> nn.Linear:
    """A linear layer with He normal weights (He et al. 2015) and zero bias."""
    return _with_weight(nn.Linear(in_dim, out_dim, bias), math.sqrt(2 / in_dim) * mx.random.normal((out_dim, in_dim)))


def orthogonal_linear(in_dim: int, out_dim: int, bias: bool = True) -> nn.Linear:
    """A linear layer with orthonormal rows (or columns, whichever are fewer) and zero bias."""
    return _with_weight(nn.Linear(in_dim, out_dim, bias), nn.init.orthogonal()(mx.zeros((out_dim, in_dim))))


def orthonormality_loss(weight: mx.array) -> mx.array:
    """``|W W^T - I|_F^2 / r^2`` over the shorter side r of ``weight``; 0 for orthonormal rows or columns."""
    rows, columns = weight.shape
    gram = weight @ weight.T if rows <= columns else weight.T @ weight
    return mx.mean(mx.square(gram - mx.eye(gram.shape[0])))


def _with_weight(layer: nn.Linear, weight: mx.array) -> nn.Linear:
    layer.weight = weight
    if "bias" in layer:
        layer.bias = mx.zeros(layer.bias.shape)
    return layer
