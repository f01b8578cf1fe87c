"""Scaled dot-product attention over token states, and the two plain multi-head layers.

Dimension key: B batch, L tokens, S keys, D hidden size, H heads, d head size.
"""

import mlx.core as mx
import mlx.nn as nn

from heads.initialization import glorot_linear
from heads.masks import as_boolean_mask, zero_padding


def head_count(dim: int, num_heads: int = 8) -> int:
    """The largest divisor of ``dim`` that is at most ``num_heads``."""
    if dim < 1 or num_heads < 1:
        raise ValueError(
            f"[attention] expected dim and num_heads of at least 1 but got {dim} and {num_heads}. Correct them."
        )
    return max(count for count in range(1, min(dim, num_heads) + 1) if dim % count == 0)


def split_heads(x: mx.array, num_heads: int) -> mx.array:
    """(B, L, H d) -> (B, H, L, d)."""
    return mx.unflatten(x, -1, (num_heads, -1)).swapaxes(1, 2)


def merge_heads(x: mx.array) -> mx.array:
    """(B, H, L, d) -> (B, L, H d)."""
    return mx.flatten(x.swapaxes(1, 2), -2)


def masked_input(x: mx.array, attention_mask: mx.array | None) -> tuple[mx.array, mx.array | None]:
    """Check ``x (B, L, D)`` and its mask; padded states become zero, so that nothing there can reach a result."""
    if x.ndim != 3:
        raise ValueError(
            f"[attention] expected hidden states of shape (B, L, D) but got {tuple(x.shape)}. "
            "Attention works on token states, before pooling."
        )
    mask = as_boolean_mask(attention_mask, x.shape[:2])
    return zero_padding(x, mask), mask


def visible_keys(mask: mx.array | None) -> mx.array | None:
    """(B, S) -> (B, 1, 1, S). A row of padding alone sees all its (zeroed) keys, so its softmax stays finite."""
    if mask is None:
        return None
    return (mask | ~mx.any(mask, axis=1, keepdims=True))[:, None, None, :]


class WeightDropout(nn.Dropout):
    """Dropout on attention weights; ``active`` says whether the weights have to be formed at all."""

    def __init__(self, rate: float):
        super().__init__(rate)
        self.rate = rate

    @property
    def active(self) -> bool:
        return self.training and self.rate > 0


def attend(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    visible: mx.array | None,
    dropout: WeightDropout,
    bias: mx.array | None = None,
) -> mx.array:
    """``softmax(q k^T / sqrt d + bias) v`` with dropout on the weights while training.

    Args:
        queries: (B, H, L, d).
        keys: (B, K, S, d), K a divisor of H.
        values: (B, K, S, e).
        visible: Boolean, broadcast against (B, H, L, S); each query must see at least one key. None: all.
        dropout: Applied to the weights.
        bias: Added to the scores, broadcast against (B, H, L, S).

    Returns:
        (B, H, L, e).
    """
    scale = queries.shape[-1] ** -0.5
    if not dropout.active:
        mask = visible
        if bias is not None:
            mask = bias.astype(queries.dtype)
            if visible is not None:
                mask = mx.where(visible, mask, mx.array(mx.finfo(queries.dtype).min, dtype=queries.dtype))
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
    if (repeats := queries.shape[1] // keys.shape[1]) > 1:
        keys, values = mx.repeat(keys, repeats, axis=1), mx.repeat(values, repeats, axis=1)
    scores = ((queries * scale) @ keys.swapaxes(-1, -2)).astype(mx.float32)
    if bias is not None:
        scores = scores + bias
    if visible is not None:
        scores = mx.where(visible, scores, mx.finfo(mx.float32).min)
    return dropout(mx.softmax(scores, axis=-1)).astype(values.dtype) @ values


class MultiHeadAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) with one fused query, key and value projection.

    Args:
        dim: Hidden size D.
        num_heads: Wanted number of heads; the largest divisor of D up to it is taken.
        dropout: Rate on the attention weights.
        bias: Whether the projections have biases.
    """

    def __init__(self, dim: int, num_heads: int = 8, dropout: float = 0.0, bias: bool = False):
        super().__init__()
        self.num_heads = head_count(dim, num_heads)
        self.qkv = glorot_linear(dim, 3 * dim, bias)
        self.out = glorot_linear(dim, dim, bias)
        self.dropout = WeightDropout(dropout)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        states, mask = masked_input(x, attention_mask)
        queries, keys, values = (split_heads(part, self.num_heads) for part in mx.split(self.qkv(states), 3, axis=-1))
        mixed = attend(queries, keys, values, visible_keys(mask), self.dropout)
        return self.out(merge_heads(mixed)).astype(x.dtype)


class MultiHeadCrossAttention(nn.Module):
    """Multi-head attention with separate query and key-value projections, so that keys may come from elsewhere.

    Args:
        dim: Hidden size D.
        num_heads: Wanted number of heads; the largest divisor of D up to it is taken.
        dropout: Rate on the attention weights.
        bias: Whether the projections have biases.
    """

    def __init__(self, dim: int, num_heads: int = 8, dropout: float = 0.0, bias: bool = True):
        super().__init__()
        self.num_heads = head_count(dim, num_heads)
        self.q = glorot_linear(dim, dim, bias)
        self.kv = glorot_linear(dim, 2 * dim, bias)
        self.out = glorot_linear(dim, dim, bias)
        self.dropout = WeightDropout(dropout)

    def __call__(
        self,
        x: mx.array,
        attention_mask: mx.array | None = None,
        kv_input: mx.array | None = None,
        kv_mask: mx.array | None = None,
    ) -> mx.array:
        """Attend from ``x`` to ``kv_input``, or to ``x`` itself.

        Args:
            x: Queries (B, L, D).
            attention_mask: (B, L), mask of ``x``.
            kv_input: Keys and values (B, S, D); None: ``x``.
            kv_mask: (B, S), mask of ``kv_input``.

        Returns:
            (B, L, D).
        """
        states, mask = masked_input(x, attention_mask)
        others, others_mask = (states, mask) if kv_input is None else masked_input(kv_input, kv_mask)
        queries = split_heads(self.q(states), self.num_heads)
        keys, values = (split_heads(part, self.num_heads) for part in mx.split(self.kv(others), 2, axis=-1))
        mixed = attend(queries, keys, values, visible_keys(others_mask), self.dropout)
        return self.out(merge_heads(mixed)).astype(x.dtype)
