"""Poolings: token states (B, L, D) and a mask (B, L) to one vector per row (B, D).

Dimension key: B batch, L tokens, D hidden size.

What stands at a padded position never changes a result, whichever side the padding is on, and a row of padding
alone gives zeros. Sums run in float32; the result has the dtype of the input.
"""

import mlx.core as mx
import mlx.nn as nn

from heads.activations import create_activation
from heads.initialization import truncated_normal_linear
from heads.lookup import build_by_name
from heads.masks import as_boolean_mask, masked_softmax, zero_padding


def _check(hidden_states: mx.array, attention_mask: mx.array | None) -> mx.array | None:
    if hidden_states.ndim != 3:
        raise ValueError(
            f"[pooling] expected hidden states of shape (B, L, D) but got {tuple(hidden_states.shape)}. "
            "Pass token states, or switch pooling off for vectors that are pooled already."
        )
    return as_boolean_mask(attention_mask, hidden_states.shape[:2])


def _take(hidden_states: mx.array, positions: mx.array, mask: mx.array) -> mx.array:
    """State at one position (B,) of each row; zeros for rows without a real token."""
    picked = mx.take_along_axis(hidden_states, positions[:, None, None], axis=1)
    return zero_padding(picked, mx.any(mask, axis=1, keepdims=True))[:, 0]


def first_pool(hidden_states: mx.array, attention_mask: mx.array | None = None) -> mx.array:
    """State of the first real token: ``h[:, 0]`` unless a row is padded on the left. (B, L, D) -> (B, D)."""
    mask = _check(hidden_states, attention_mask)
    if mask is None:
        return hidden_states[:, 0]
    return _take(hidden_states, mx.argmax(mask, axis=1), mask)


def last_pool(hidden_states: mx.array, attention_mask: mx.array | None = None) -> mx.array:
    """State of the last real token, under left and right padding. (B, L, D) -> (B, D)."""
    mask = _check(hidden_states, attention_mask)
    if mask is None:
        return hidden_states[:, -1]
    positions = mx.max(mx.where(mask, mx.arange(mask.shape[1]), 0), axis=1)
    return _take(hidden_states, positions, mask)


def mean_pool(hidden_states: mx.array, attention_mask: mx.array | None = None) -> mx.array:
    """``sum_s m_s h_s / max(sum_s m_s, 1e-9)`` over real tokens. (B, L, D) -> (B, D)."""
    mask = _check(hidden_states, attention_mask)
    states = hidden_states.astype(mx.float32)
    if mask is None:
        return mx.mean(states, axis=1).astype(hidden_states.dtype)
    count = mx.sum(mask, axis=1, keepdims=True).astype(mx.float32)
    return (mx.sum(zero_padding(states, mask), axis=1) / mx.maximum(count, 1e-9)).astype(hidden_states.dtype)


def max_pool(hidden_states: mx.array, attention_mask: mx.array | None = None) -> mx.array:
    """Largest value of each feature over real tokens. (B, L, D) -> (B, D)."""
    mask = _check(hidden_states, attention_mask)
    if mask is None:
        return mx.max(hidden_states, axis=1)
    lowest = mx.array(mx.finfo(hidden_states.dtype).min, dtype=hidden_states.dtype)
    largest = mx.max(mx.where(mask[..., None], hidden_states, lowest), axis=1)
    return zero_padding(largest, mx.any(mask, axis=1))


def weighted_pool(hidden_states: mx.array, weights: mx.array) -> mx.array:
    """``sum_s w_s h_s`` in float32: (B, L, D) and weights (B, L) -> (B, D)."""
    pooled = weights.astype(mx.float32)[:, None, :] @ hidden_states.astype(mx.float32)
    return pooled[:, 0].astype(hidden_states.dtype)


class CLSPooling(nn.Module):
    """State of the first real token: ``h[:, 0]`` unless a row is padded on the left."""

    def __init__(self, dim: int):
        super().__init__()

    def __call__(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        return first_pool(hidden_states, attention_mask)


class LastPooling(nn.Module):
    """State of the last real token; the usual choice for decoders as encoders."""

    def __init__(self, dim: int):
        super().__init__()

    def __call__(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        return last_pool(hidden_states, attention_mask)


class MeanPooling(nn.Module):
    """Mean of the real tokens."""

    def __init__(self, dim: int):
        super().__init__()

    def __call__(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        return mean_pool(hidden_states, attention_mask)


class MaxPooling(nn.Module):
    """Largest value of each feature over the real tokens."""

    def __init__(self, dim: int):
        super().__init__()

    def __call__(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        return max_pool(hidden_states, attention_mask)


class AttentionPooling(nn.Module):
    """``a = score(h w + b)``, softmax over real tokens, ``sum_s a_s h_s``; D + 1 parameters.

    Args:
        dim: Hidden size D.
        score_activation: ``"tanh"`` bounds each score to (-1, 1); None leaves it linear (the bias then has no effect).
    """

    def __init__(self, dim: int, score_activation: str | None = "tanh"):
        super().__init__()
        if score_activation not in ("tanh", None):
            raise ValueError(
                f"[AttentionPooling] expected score_activation 'tanh' or None but got {score_activation!r}. Use one."
            )
        self.score = truncated_normal_linear(dim, 1)
        self.score_activation = score_activation

    def __call__(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        mask = _check(hidden_states, attention_mask)
        hidden_states = zero_padding(hidden_states, mask)
        scores = self.score(hidden_states)[..., 0].astype(mx.float32)
        if self.score_activation == "tanh":
            scores = mx.tanh(scores)
        return weighted_pool(hidden_states, masked_softmax(scores, mask, axis=1))


class WeightedMeanPooling(nn.Module):
    """Weighted mean with learned weights: ``sum_s w_s h_s / (sum_s w_s + 1e-9)``.

    Args:
        dim: Hidden size D.
        position_based: False: ``w_s = sigmoid(h_s w + b)``, a gate on the content. True: ``w_s = softplus(v_s)`` with
            one learned number per position, counted from the first real token of each row.
        max_length: Number of learned positions (only with ``position_based``); longer inputs are an error.
    """

    def __init__(self, dim: int, position_based: bool = False, max_length: int = 512):
        super().__init__()
        self.position_based = position_based
        if position_based:
            self.position_scores = mx.zeros((max_length,))
        else:
            self.gate = truncated_normal_linear(dim, 1)

    def __call__(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        mask = _check(hidden_states, attention_mask)
        hidden_states = zero_padding(hidden_states, mask)
        weights = self._weights(hidden_states, mask)
        if mask is not None:
            weights = mx.where(mask, weights, 0.0)
        weights = weights / (mx.sum(weights, axis=1, keepdims=True) + 1e-9)
        return weighted_pool(hidden_states, weights)

    def _weights(self, hidden_states: mx.array, mask: mx.array | None) -> mx.array:
        if not self.position_based:
            return mx.sigmoid(self.gate(hidden_states)[..., 0].astype(mx.float32))
        length, max_length = hidden_states.shape[1], self.position_scores.shape[0]
        if length > max_length:
            raise ValueError(
                f"[WeightedMeanPooling] expected at most max_length={max_length} tokens but got {length}. "
                "Raise max_length or truncate the input."
            )
        weights = nn.softplus(self.position_scores.astype(mx.float32))
        if mask is None:
            return mx.broadcast_to(weights[:length], hidden_states.shape[:2])
        return weights[mx.maximum(mx.cumsum(mask.astype(mx.int32), axis=1) - 1, 0)]


class PoolerPooling(nn.Module):
    """BERT's pooler: ``activation(W h_0 + b)`` on the first real token, or its mean over all real tokens.

    Args:
        dim: Hidden size D.
        activation: Name of an activation (`heads.activations`); BERT uses tanh.
        tokens: ``"first"`` or ``"all"`` (EuroBERT's late pooling).
    """

    def __init__(self, dim: int, activation: str = "tanh", tokens: str = "first"):
        super().__init__()
        if tokens not in ("first", "all"):
            raise ValueError(f"[PoolerPooling] expected tokens 'first' or 'all' but got {tokens!r}. Use one.")
        self.tokens = tokens
        self.dense = truncated_normal_linear(dim, dim)
        self.activation = create_activation(activation)

    def __call__(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        if self.tokens == "all":
            hidden_states = zero_padding(hidden_states, _check(hidden_states, attention_mask))
            pooled = mean_pool(self.activation(self.dense(hidden_states)), attention_mask)
        else:
            pooled = self.activation(self.dense(first_pool(hidden_states, attention_mask)))
        return pooled.astype(hidden_states.dtype)


class NoPooling(nn.Module):
    """Returns its input, for heads that work on every token."""

    def __init__(self, dim: int):
        super().__init__()

    def __call__(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        return hidden_states


POOLINGS: dict[str, type[nn.Module]] = {
    "cls": CLSPooling,
    "mean": MeanPooling,
    "max": MaxPooling,
    "attention": AttentionPooling,
    "weighted_mean": WeightedMeanPooling,
    "last": LastPooling,
    "pooler": PoolerPooling,
    "none": NoPooling,
}


def create_pooling(name: str, dim: int, **options) -> nn.Module:
    """Build the pooling called ``name`` for hidden size ``dim``: (B, L, D), (B, L) -> (B, D).

    Raises:
        ValueError: for an unknown name or option.
    """
    return build_by_name(POOLINGS, name, "pooling_type", (dim,), options)
