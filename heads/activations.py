"""Activations by name. Each maps an array to an array of the same shape and dtype.

Plain ones are functions; the ones with a trainable scalar are modules.
"""

import math
from collections.abc import Callable
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from heads.lookup import check_options, find_by_name

Activation = Callable[[mx.array], mx.array]


def gelu(x: mx.array) -> mx.array:
    """``x (1 + erf(x / sqrt 2)) / 2``, the exact form."""
    return nn.gelu(x)


def gelu_tanh(x: mx.array) -> mx.array:
    """GELU with the tanh approximation, ``gelu_new`` and ``gelu_pytorch_tanh`` of config.json (Hendrycks 2016)."""
    return nn.gelu_approx(x)


def relu(x: mx.array, max_value: float | None = None, negative_slope: float = 0.0, threshold: float = 0.0) -> mx.array:
    """``x`` from ``threshold`` on, capped at ``max_value``; ``negative_slope (x - threshold)`` below."""
    kept = x if max_value is None else mx.minimum(x, max_value)
    return mx.where(x >= threshold, kept, negative_slope * (x - threshold)).astype(x.dtype)


def silu(x: mx.array) -> mx.array:
    """``x sigmoid(x)``; also called swish."""
    return x * mx.sigmoid(x)


def mish(x: mx.array) -> mx.array:
    """``x tanh(softplus(x))`` (Misra 2019)."""
    return x * mx.tanh(nn.softplus(x))


def saturated_mish(x: mx.array, alpha: float = 3.0, beta: float = 0.5) -> mx.array:
    """Mish that levels off: ``mish(x) (1 - b) + mish(alpha) b`` with ``b = sigmoid((x - alpha) / beta)``."""
    blend = mx.sigmoid((x - alpha) / beta)
    ceiling = alpha * math.tanh(math.log1p(math.exp(alpha)))
    return mish(x) * (1 - blend) + ceiling * blend


def hard_sigmoid(x: mx.array) -> mx.array:
    """``relu6(x + 3) / 6``."""
    return mx.clip(x + 3, 0, 6) / 6


def hard_swish(x: mx.array) -> mx.array:
    """``x relu6(x + 3) / 6``."""
    return x * hard_sigmoid(x)


def relu_k(x: mx.array, k: int = 3) -> mx.array:
    """``max(0, x) ** k``."""
    return mx.maximum(x, 0) ** k


def golu(x: mx.array, alpha: float = 1.0, beta: float = 1.0, gamma: float = 1.0) -> mx.array:
    """Gompertz linear unit: ``x alpha exp(-beta exp(-gamma x))``."""
    # The inner exponent is cut where the gate is 0 already; its gradient would be 0 * inf.
    inner = mx.exp(mx.minimum(-gamma * x.astype(mx.float32), 20.0))
    return (x * (alpha * mx.exp(-beta * inner))).astype(x.dtype)


def elu_plus_one(x: mx.array, alpha: float = 1.0) -> mx.array:
    """``elu(x) + 1 + 1e-7``, positive for alpha = 1."""
    return elu(x, alpha) + (1 + 1e-7)


def elu(x: mx.array, alpha: float = 1.0) -> mx.array:
    """``x`` if positive, else ``alpha (exp(x) - 1)``."""
    return mx.where(x > 0, x, alpha * mx.expm1(mx.minimum(x, 0)))


def leaky_relu(x: mx.array, negative_slope: float = 0.01) -> mx.array:
    """``x`` if positive, else ``negative_slope x``."""
    return mx.maximum(x, 0) + negative_slope * mx.minimum(x, 0)


def squash(x: mx.array, eps: float = 1e-7) -> mx.array:
    """``n / (1 + n) x / sqrt(n + eps)`` with ``n = |x|^2`` over the last axis (Sabour et al. 2017)."""
    states = x.astype(mx.float32)
    norm = mx.sum(mx.square(states), axis=-1, keepdims=True)
    return (norm / (1 + norm) * states * mx.rsqrt(norm + eps)).astype(x.dtype)


def thresh_max(x: mx.array, slope: float = 10.0, eps: float = 1e-12) -> mx.array:
    """Softmax that favours entries above 1/n: ``y = (tanh(slope (p - 1/n)) + 1) / 2``, then ``y / sum y``."""
    probabilities = mx.softmax(x.astype(mx.float32), axis=-1)
    kept = (mx.tanh(slope * (probabilities - 1 / x.shape[-1])) + 1) / 2
    total = mx.sum(kept, axis=-1, keepdims=True)
    return mx.where(total < eps, probabilities, kept / (total + eps)).astype(x.dtype)


def tanh(x: mx.array) -> mx.array:
    """Hyperbolic tangent."""
    return mx.tanh(x)


def sigmoid(x: mx.array) -> mx.array:
    """``1 / (1 + exp(-x))``."""
    return mx.sigmoid(x)


def identity(x: mx.array) -> mx.array:
    """Returns its input."""
    return x


def _gaussian_gate(x: mx.array) -> mx.array:
    return (1 + mx.erf(x / math.sqrt(2))) / 2


def _arctan_gate(x: mx.array) -> mx.array:
    return (mx.arctan(x) + math.pi / 2) / math.pi


class ExpandedGate(nn.Module):
    """``x (g(x) (1 + 2 a) - a)`` with a trainable scalar a (Huang 2024, expanded gating ranges).

    Args:
        gate: ``g``, a function to (0, 1).
        alpha: Start value of a.
    """

    def __init__(self, gate: Activation, alpha: float = 0.0):
        super().__init__()
        self._gate = gate
        self.alpha = mx.array(float(alpha))

    def __call__(self, x: mx.array) -> mx.array:
        alpha = self.alpha.astype(x.dtype)
        return x * (self._gate(x) * (1 + 2 * alpha) - alpha)


def xatlu(alpha: float = 0.0) -> ExpandedGate:
    """Expanded arctan linear unit."""
    return ExpandedGate(_arctan_gate, alpha)


def xgelu(alpha: float = 0.0) -> ExpandedGate:
    """Expanded GELU."""
    return ExpandedGate(_gaussian_gate, alpha)


def xsilu(alpha: float = 0.0) -> ExpandedGate:
    """Expanded SiLU."""
    return ExpandedGate(mx.sigmoid, alpha)


_FUNCTIONS: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
    "silu": silu,
    "swish": silu,
    "mish": mish,
    "saturated_mish": saturated_mish,
    "hard_swish": hard_swish,
    "hard_sigmoid": hard_sigmoid,
    "relu_k": relu_k,
    "golu": golu,
    "elu_plus_one": elu_plus_one,
    "basis_function": silu,  # x / (1 + exp(-x)) is the same function
    "squash": squash,
    "thresh_max": thresh_max,
    "tanh": tanh,
    "sigmoid": sigmoid,
    "leaky_relu": leaky_relu,
    "elu": elu,
    "linear": identity,
    "none": identity,
}
_MODULES: dict[str, Callable[..., nn.Module]] = {"xatlu": xatlu, "xgelu": xgelu, "xsilu": xsilu}
ACTIVATIONS: dict[str, Callable] = {**_FUNCTIONS, **_MODULES}
"""Every activation: functions of an array, and builders of the modules with a trainable scalar."""

_UNAVAILABLE = {
    "adaptive_softmax": "an entropy-adaptive softmax is not implemented; thresh_max and squash are",
    "routing_probabilities": "hierarchical routing is not implemented; thresh_max and squash are",
}


def create_activation(name: str, **options) -> Activation:
    """Return the activation called ``name``: a function, or a module if it has parameters.

    Raises:
        ValueError: for an unknown name or option.
    """
    function = find_by_name(ACTIVATIONS, name, "activation_type", _UNAVAILABLE)
    if function in _MODULES.values():
        check_options(function, 0, name, "activation_type", options)
        return function(**options)
    check_options(function, 1, name, "activation_type", options)
    return partial(function, **options) if options else function
