"""Attention masks inside heads: boolean from the input to the softmax.

Dimension key: B batch, L tokens, D hidden size.
"""

import mlx.core as mx


def as_boolean_mask(attention_mask: mx.array | None, shape: tuple[int, ...]) -> mx.array | None:
    """Return the mask as booleans (True = real token), or None when there is no mask.

    Args:
        attention_mask: bool, int or float array, or None for "all real".
        shape: Shape that the mask must have, such as ``(B, L)``.

    Raises:
        ValueError: if the shape differs.
    """
    if attention_mask is None:
        return None
    if tuple(attention_mask.shape) != tuple(shape):
        raise ValueError(
            f"[attention_mask] expected shape {tuple(shape)} but got {tuple(attention_mask.shape)}. "
            "Give one value per token: 1 for a real token, 0 for padding."
        )
    return attention_mask.astype(mx.bool_)


def zero_padding(hidden_states: mx.array, mask: mx.array | None) -> mx.array:
    """Set padded positions of ``hidden_states (B, L, D)`` to zero; even NaN there disappears."""
    if mask is None:
        return hidden_states
    return mx.where(mx.expand_dims(mask, -1), hidden_states, mx.zeros((), dtype=hidden_states.dtype))


def masked_softmax(scores: mx.array, mask: mx.array | None, axis: int = -1) -> mx.array:
    """Softmax in float32 over the places where ``mask`` is True; elsewhere, and in empty rows, the weight is 0.

    Args:
        scores: Any shape.
        mask: Boolean, broadcastable to ``scores``, or None.
        axis: Axis that sums to 1.
    """
    scores = scores.astype(mx.float32)
    if mask is None:
        return mx.softmax(scores, axis=axis)
    weights = mx.softmax(mx.where(mask, scores, mx.finfo(mx.float32).min), axis=axis)
    return mx.where(mask, weights, 0.0)


def left_alignment(mask: mx.array) -> tuple[mx.array, mx.array]:
    """Positions (B, L) that rotate each row so that its first real token comes first, and those that rotate it back."""
    positions = mx.arange(mask.shape[1])
    first = mx.argmax(mask, axis=1)[:, None].astype(positions.dtype)
    return (positions + first) % mask.shape[1], (positions - first) % mask.shape[1]
