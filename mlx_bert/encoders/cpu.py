"""GELU and attention for MLX's CPU backend, in plain arithmetic that a compiler turns into vector instructions.

MLX computes erf and exp on a CPU one number at a time: on x86 the GELU of an MLP took longer than both its matrix
products, and the softmax longer than both of attention's. The functions below are the same functions to float32's
precision, several times faster there. On a GPU ``nn.gelu`` and the fused attention are the right ones.

Neither ``maximum`` nor ``minimum`` may appear in a compiled function: MLX's care for NaN keeps them scalar.

Dimensions: B batch, H attention heads, L tokens, d = D / H.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

# erfc(t / sqrt(2)) / 2 is 1 / (c0 + c1 t + ...) ** 8: least squares on t times it, reweighted towards the largest error
# (1.4e-7 over all t >= 0). The coefficient of t ** 7 came out as 0.
ERFC = (
    1.0905059602637373,
    0.108786609565727,
    0.04870664868081894,
    0.009676693163109722,
    0.0007009807800429602,
    0.0003690259948065431,
    1.3210353235120323e-05,
    1.7541973714685422e-06,
)
# exp(t / 4) = c0 + c1 t + ..., least squares in relative error over 0 <= t <= 16 (4e-9).
EXP = (
    0.9999999964892187,
    0.2500000855313265,
    0.031249672673971263,
    0.0026046397837242124,
    0.0001624179250433639,
    8.280277052076402e-06,
    3.026000819560457e-07,
    1.810812101614903e-08,
    -2.600610808902068e-10,
    5.369480637277916e-11,
    -1.4750418538621432e-12,
    4.0595216966602944e-14,
)
FARTHEST = 60.0  # exp(-60) is nothing beside 1; the polynomial holds until there
# Added to a score that must not count: half of float32's lowest, so that the sum stays finite.
CLOSED = mx.finfo(mx.float32).min / 2


def suits(x: mx.array) -> bool:
    """Whether ``x`` will be computed on a CPU in float32, where the functions of this file pay."""
    return x.dtype == mx.float32 and mx.default_device().type == mx.DeviceType.cpu


def gelu(x: mx.array) -> mx.array:
    """``x * (1 + erf(x / sqrt(2))) / 2``, exact as in ``nn.gelu``; on a CPU to 4e-7 for every finite ``x``."""
    return _gelu(x) if suits(x) else nn.gelu(x)


@mx.compile
def _gelu(x: mx.array) -> mx.array:
    """``max(x, 0) - |x| / 2 erfc(|x| / sqrt(2))``. Inverted before it is raised, so that gradients stay finite."""
    c, t = ERFC, mx.abs(x)
    t2 = t * t
    p = (c[0] + c[1] * t) + t2 * (c[2] + c[3] * t) + (t2 * t2) * ((c[4] + c[5] * t) + t2 * (c[6] + t2 * c[7]))
    q = 1.0 / p
    q = q * q
    q = q * q
    return 0.5 * (x + t) - t * (q * q)


def exp_negative(t: mx.array) -> mx.array:
    """``exp(-t)`` for ``t >= 0``: to 1.2e-6 of the value up to t = 16 (as ``mx.exp`` on a CPU), to 1e-12 beyond."""
    return _exp_negative(mx.minimum(t, FARTHEST))


@mx.compile
def _exp_negative(t: mx.array) -> mx.array:
    c, t2 = EXP, t * t
    t4 = t2 * t2
    low = (c[0] + c[1] * t) + t2 * (c[2] + c[3] * t)
    middle = (c[4] + c[5] * t) + t2 * (c[6] + c[7] * t)
    high = (c[8] + c[9] * t) + t2 * (c[10] + c[11] * t)
    q = 1.0 / (low + t4 * (middle + t4 * high))
    q = q * q
    return q * q


def attention(query: mx.array, key: mx.array, value: mx.array, mask: mx.array | None, scale: float) -> mx.array:
    """``softmax(scale * query @ key + mask) @ value`` in float32.

    Args:
        query, key, value: ``(B, H, L, d)``; keys and values may have fewer heads, each shared by several queries'.
        mask: boolean, True where attention is allowed, or to be added; broadcast to ``(B, H, L, L)``; or None.

    Returns:
        ``(B, H, L, d)``.
    """
    if (shared_by := query.shape[1] // key.shape[1]) > 1:
        key, value = mx.repeat(key, shared_by, axis=1), mx.repeat(value, shared_by, axis=1)
    scores = (query * scale) @ key.swapaxes(-1, -2)
    if mask is not None:
        scores = scores + (mx.where(mask, 0.0, CLOSED) if mask.dtype == mx.bool_ else mask)
    highest = mx.stop_gradient(mx.max(scores, axis=-1, keepdims=True))
    weights = exp_negative(highest - scores)
    return (weights @ value) / mx.sum(weights, axis=-1, keepdims=True)
