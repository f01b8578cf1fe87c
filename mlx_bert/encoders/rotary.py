"""Rotary positions (Su et al. 2021, https://arxiv.org/abs/2104.09864) and their scaled forms.

Dimensions: B batch, L tokens, H attention heads, d head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_bert.encoders.cpu import suits


class Rotary(NamedTuple):
    """Pair ``i`` of a head turns by ``position * scale * base ** (-2i / d)``."""

    base: float
    scale: float = 1.0


def rope_parameters(config: Mapping[str, Any], default_theta: float) -> dict[str, Any]:
    """The ``rope_parameters`` of a ``config.json``, also from the older keys ``rope_theta`` and ``rope_scaling``."""
    rope = {
        "rope_type": "default",
        "rope_theta": config.get("rope_theta") or default_theta,
        **(config.get("rope_scaling") or {}),
        **(config.get("rope_parameters") or {}),
    }
    older_type = rope.pop("type", None)
    if older_type is not None and rope["rope_type"] == "default":
        rope["rope_type"] = older_type
    return rope


def rotary(rope: Mapping[str, Any], where: str) -> Rotary:
    """What ``rope_parameters`` ask for.

    Types: ``default``; ``linear`` (positions divided by ``factor``); ``dynamic``, which differs from default only
    beyond ``max_position_embeddings``, where encoders here do not go.

    Raises:
        ValueError: another type, rotation of a part of each head, or a factor that is no positive number.
    """
    kind, factor = rope.get("rope_type", "default"), rope.get("factor", 1.0)
    if kind not in ("default", "linear", "dynamic") or rope.get("partial_rotary_factor") not in (None, 1.0):
        raise ValueError(
            f"[{where}] expected rope_type to be default, linear or dynamic, over whole heads, but got {dict(rope)}. "
            "This scaling of rotary positions is not supported."
        )
    theta = rope.get("rope_theta")
    for name, value in (("rope_theta", theta), ("factor", factor)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"[{where}] expected {name} to be a positive number but got {value!r}. Check config.json.")
    return Rotary(float(theta), 1.0 / factor if kind == "linear" else 1.0)


def rotate(x: mx.array, rope: Rotary, position_ids: mx.array | None) -> mx.array:
    """Turn ``(B, H, L, d)``, the halves of each head against each other.

    Args:
        position_ids: ``(B, L)`` or ``(1, L)``; None for 0, 1, 2, ...
    """
    d = x.shape[-1]
    if position_ids is None and suits(x):
        L = x.shape[2]
        cos, sin = (turn[:L] for turn in _turns(1 << (L - 1).bit_length(), d, rope))
        left, right = mx.split(x, 2, axis=-1)
        return x * cos + mx.concatenate([right, left], axis=-1) * sin
    if position_ids is None:
        return mx.fast.rope(x, d, traditional=False, base=rope.base, scale=rope.scale, offset=0)
    angles = position_ids[:, None, :, None].astype(mx.float32) * _frequencies(d, rope)
    cos, sin = mx.cos(angles), mx.sin(angles)
    left, right = mx.split(x.astype(mx.float32), 2, axis=-1)
    return mx.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)


@lru_cache(maxsize=8)
def _turns(length: int, d: int, rope: Rotary) -> tuple[mx.array, mx.array]:
    """Cosines and signed sines of :func:`rotate` for positions 0, 1, 2, ...: ``(L, d)`` each."""
    angles = mx.arange(length)[:, None] * _frequencies(d, rope)
    cos, sin = mx.cos(angles), mx.sin(angles)
    turns = mx.concatenate([cos, cos], axis=-1), mx.concatenate([-sin, sin], axis=-1)
    mx.eval(turns)
    return turns


def _frequencies(d: int, rope: Rotary) -> mx.array:
    return rope.scale * rope.base ** (-mx.arange(0, d, 2, dtype=mx.float32) / d)
