"""The type that a model computes in."""

from __future__ import annotations

import mlx.core as mx

from mlx_bert.checkpoint import float_dtype


def compute_dtype(dtype: str | mx.Dtype | None) -> mx.Dtype | None:
    """The type to load weights in; None as stored, but float32 on a CPU, which has no fast 16-bit arithmetic.

    Raises:
        ValueError: a name that is no floating type; see :func:`mlx_bert.checkpoint.float_dtype`.
    """
    dtype = float_dtype(dtype)
    if dtype is None and mx.default_device() == mx.Device(mx.cpu):
        return mx.float32
    return dtype
