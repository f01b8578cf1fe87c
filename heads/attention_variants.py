"""Self-attention layers beyond plain multi-head: fewer keys, windows, latents, anchors, differences of two maps.

Dimension key: B batch, L tokens, D hidden size, H heads, d head size.

Each is called as ``attention(x (B, L, D), attention_mask (B, L) = None) -> (B, L, D)``; padding reaches no real token.
"""

import math

import mlx.core as mx
import mlx.nn as nn

from heads.attention_core import (
    MultiHeadAttention,
    MultiHeadCrossAttention,
    WeightDropout,
    attend,
    head_count,
    masked_input,
    merge_heads,
    split_heads,
    visible_keys,
)
from heads.initialization import glorot_linear, truncated_normal
from heads.masks import left_alignment


def lambda_init(layer_index: int) -> float:
    """``0.8 - 0.6 exp(-0.3 (l - 1))`` for layer l = 1, 2, ... (Ye et al. 2024)."""
    return 0.8 - 0.6 * math.exp(-0.3 * max(layer_index - 1, 0))


class DifferentialAttention(nn.Module):
    """Differential attention (Ye et al. 2024): ``(softmax(Q1 K1^T / sqrt d) - lambda softmax(Q2 K2^T / sqrt d)) V``.

    ``lambda = exp(lq1 . lk1) - exp(lq2 . lk2) + lambda_init(l)``; each head's output gets an RMS norm and the factor
    ``1 - lambda_init(l)``. V has 2 d features per head, so that 2 d H = D (D - 1 for an odd D).

    Args:
        dim: Hidden size D.
        num_heads: Wanted number of heads; the largest divisor of D // 2 up to it is taken.
        dropout: Rate on the attention weights.
        layer_index: l, counted from 1.
    """

    def __init__(self, dim: int, num_heads: int = 8, dropout: float = 0.0, layer_index: int = 1):
        super().__init__()
        half = max(dim // 2, 1)
        self.num_heads = head_count(half, num_heads)
        size = half // self.num_heads
        self.lambda_init = lambda_init(layer_index)
        self.qkv = glorot_linear(dim, 6 * half, bias=False)
        self.out = glorot_linear(2 * half, dim, bias=False)
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            mx.random.normal((size,), scale=0.1) for _ in range(4)
        )
        self.head_norm = nn.RMSNorm(2 * size, eps=1e-5)
        self.dropout = WeightDropout(dropout)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        states, mask = masked_input(x, attention_mask)
        queries, keys, values = mx.split(self.qkv(states), 3, axis=-1)
        # Two maps per head: the first H heads of queries and keys, and the other H.
        queries, keys = split_heads(queries, 2 * self.num_heads), split_heads(keys, 2 * self.num_heads)
        values = split_heads(values, self.num_heads)
        both = attend(queries, keys, mx.concatenate([values, values], axis=1), visible_keys(mask), self.dropout)
        first, second = mx.split(both.astype(mx.float32), 2, axis=1)
        mixed = self.head_norm(first - self._lambda() * second) * (1 - self.lambda_init)
        return self.out(merge_heads(mixed.astype(states.dtype))).astype(x.dtype)

    def _lambda(self) -> mx.array:
        q1, k1, q2, k2 = (
            part.astype(mx.float32) for part in (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2)
        )
        return mx.exp(mx.sum(q1 * k1)) - mx.exp(mx.sum(q2 * k2)) + self.lambda_init


class DualAttention(nn.Module):
    """``proj(MHA1(x) - lambda MHA2(x))``, ``lambda = clip(lambda_init(l) p, 0.1, 0.9)`` with a trainable p from 0.8."""

    def __init__(self, dim: int, num_heads: int = 8, dropout: float = 0.0, layer_index: int = 0):
        super().__init__()
        self.first = MultiHeadAttention(dim, num_heads, dropout)
        self.second = MultiHeadAttention(dim, num_heads, dropout)
        self.out = glorot_linear(dim, dim)
        self.lambda_init = lambda_init(layer_index)
        self.lambda_scale = mx.array([0.8])

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        scale = mx.clip(self.lambda_init * self.lambda_scale, 0.1, 0.9)
        difference = self.first(x, attention_mask) - scale * self.second(x, attention_mask)
        return self.out(difference).astype(x.dtype)


def differential_attention(
    dim: int, num_heads: int = 8, dropout: float = 0.0, variant: str = "paper", layer_index: int | None = None
) -> nn.Module:
    """`DifferentialAttention` (``variant="paper"``) or `DualAttention` (``"dual_mha"``)."""
    variants = {"paper": (DifferentialAttention, 1), "dual_mha": (DualAttention, 0)}
    if variant not in variants:
        raise ValueError(f"[differential] expected variant 'paper' or 'dual_mha' but got {variant!r}. Use one of them.")
    build, first_layer = variants[variant]
    return build(dim, num_heads, dropout, first_layer if layer_index is None else layer_index)


class GroupQueryAttention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023) with rotary positions on interleaved pairs.

    Args:
        dim: Hidden size D.
        num_heads: Wanted number of query heads H; the largest divisor of D up to it is taken.
        dropout: Rate on the attention weights.
        num_kv_heads: Key-value heads, a divisor of H; None: 2, or 1 for an odd H.
        rope_theta: Base of the rotary frequencies.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        dropout: float = 0.0,
        num_kv_heads: int | None = None,
        rope_theta: float = 10000.0,
    ):
        super().__init__()
        self.num_heads = head_count(dim, num_heads)
        self.num_kv_heads = head_count(self.num_heads, 2) if num_kv_heads is None else num_kv_heads
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"[group_query] expected num_kv_heads to divide {self.num_heads} heads but got {num_kv_heads}. "
                "Choose a divisor."
            )
        size = dim // self.num_heads
        self.rope_theta = rope_theta
        self.q = glorot_linear(dim, dim, bias=False)
        self.kv = glorot_linear(dim, 2 * self.num_kv_heads * size, bias=False)
        self.out = glorot_linear(dim, dim, bias=False)
        self.dropout = WeightDropout(dropout)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        states, mask = masked_input(x, attention_mask)
        queries = self._rotate(split_heads(self.q(states), self.num_heads))
        keys, values = (split_heads(part, self.num_kv_heads) for part in mx.split(self.kv(states), 2, axis=-1))
        mixed = attend(queries, self._rotate(keys), values, visible_keys(mask), self.dropout)
        return self.out(merge_heads(mixed)).astype(x.dtype)

    def _rotate(self, x: mx.array) -> mx.array:
        pairs = x.shape[-1] // 2
        if pairs == 0:
            return x
        return mx.fast.rope(x, 2 * pairs, traditional=True, base=self.rope_theta, scale=1.0, offset=0)


class MobileMQA(nn.Module):
    """Multi-query attention, one key-value head for all: ``x + lambda W_o attention(x)``, trainable lambda from 1."""

    def __init__(self, dim: int, num_heads: int = 8, dropout: float = 0.0):
        super().__init__()
        self.num_heads = head_count(dim, num_heads)
        self.q = glorot_linear(dim, dim)
        self.kv = glorot_linear(dim, 2 * dim // self.num_heads)
        self.out = glorot_linear(dim, dim)
        self.residual_scale = mx.ones((1,))
        self.dropout = WeightDropout(dropout)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        states, mask = masked_input(x, attention_mask)
        keys, values = (split_heads(part, 1) for part in mx.split(self.kv(states), 2, axis=-1))
        mixed = attend(split_heads(self.q(states), self.num_heads), keys, values, visible_keys(mask), self.dropout)
        return (states + self.residual_scale * self.out(merge_heads(mixed))).astype(x.dtype)


class PerceiverAttention(nn.Module):
    """Attention through M learned latents (Jaegle et al. 2021): latents read the tokens, tokens read the latents.

    Args:
        dim: Hidden size D.
        num_heads: Wanted number of heads; the largest divisor of D up to it is taken.
        dropout: Rate on the attention weights.
        num_latents: M; the cost is L M.
    """

    def __init__(self, dim: int, num_heads: int = 8, dropout: float = 0.0, num_latents: int = 32):
        super().__init__()
        self.latents = truncated_normal((num_latents, dim))
        self.read = MultiHeadCrossAttention(dim, num_heads, dropout)
        self.write = MultiHeadCrossAttention(dim, num_heads, dropout)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        latents = mx.broadcast_to(self.latents.astype(x.dtype), (x.shape[0], *self.latents.shape))
        latents = self.read(latents, kv_input=x, kv_mask=attention_mask)
        return self.write(x, attention_mask, kv_input=latents)


class WindowAttention(nn.Module):
    """Multi-head attention inside windows of w consecutive tokens, with a learned bias per relative position.

    Windows do not overlap and are counted from the first real token, so the side of the padding does not matter.

    Args:
        dim: Hidden size D.
        num_heads: Wanted number of heads; the largest divisor of D up to it is taken.
        dropout: Rate on the attention weights.
        window_size: w.
    """

    def __init__(self, dim: int, num_heads: int = 8, dropout: float = 0.0, window_size: int = 7):
        super().__init__()
        if window_size < 1:
            raise ValueError(f"[window] expected window_size of at least 1 but got {window_size}. The default is 7.")
        self.num_heads = head_count(dim, num_heads)
        self.window_size = window_size
        self.qkv = glorot_linear(dim, 3 * dim)
        self.out = glorot_linear(dim, dim)
        self.position_bias = truncated_normal((2 * window_size - 1, self.num_heads))
        self.dropout = WeightDropout(dropout)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        states, mask = masked_input(x, attention_mask)
        batch, length, dim = x.shape
        width = self.window_size
        back = None
        if mask is None:
            mask = mx.ones((batch, length), dtype=mx.bool_)
        else:
            order, back = left_alignment(mask)
            states, mask = mx.take_along_axis(states, order[..., None], axis=1), mx.take_along_axis(mask, order, axis=1)
        filler = -length % width
        windows = mx.pad(states, ((0, 0), (0, filler), (0, 0))).reshape(-1, width, dim)
        visible = visible_keys(mx.pad(mask, ((0, 0), (0, filler))).reshape(-1, width))
        queries, keys, values = (split_heads(part, self.num_heads) for part in mx.split(self.qkv(windows), 3, axis=-1))
        mixed = merge_heads(attend(queries, keys, values, visible, self.dropout, self._bias()))
        mixed = self.out(mixed).reshape(batch, length + filler, dim)[:, :length]
        if back is not None:
            mixed = mx.take_along_axis(mixed, back[..., None], axis=1)
        return mixed.astype(x.dtype)

    def _bias(self) -> mx.array:
        """(H, w, w) from the table: query i, key j take entry i - j."""
        positions = mx.arange(self.window_size)
        distance = positions[:, None] - positions[None, :] + self.window_size - 1
        return mx.transpose(self.position_bias[distance], (2, 0, 1))


class AnchorAttention(nn.Module):
    """The first tokens of a row are anchors: they attend among themselves, all others attend to them alone.

    Args:
        dim: Hidden size D.
        num_heads: Wanted number of heads; the largest divisor of D up to it is taken.
        dropout: Rate on the attention weights.
        num_anchor_tokens: Number of anchors, counted from the first real token; None: full self-attention.
    """

    def __init__(self, dim: int, num_heads: int = 8, dropout: float = 0.0, num_anchor_tokens: int | None = None):
        super().__init__()
        if num_anchor_tokens is not None and num_anchor_tokens < 1:
            raise ValueError(
                f"[anchor] expected num_anchor_tokens of at least 1 but got {num_anchor_tokens}. None means all tokens."
            )
        self.num_heads = head_count(dim, num_heads)
        self.num_anchor_tokens = num_anchor_tokens
        self.qkv = glorot_linear(dim, 3 * dim)
        if num_anchor_tokens is not None:
            self.q = glorot_linear(dim, dim)
        self.out = glorot_linear(dim, dim)
        self.dropout = WeightDropout(dropout)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        states, mask = masked_input(x, attention_mask)
        back, anchors = None, self.num_anchor_tokens or x.shape[1]
        if mask is not None and anchors < x.shape[1]:
            order, back = left_alignment(mask)
            states, mask = mx.take_along_axis(states, order[..., None], axis=1), mx.take_along_axis(mask, order, axis=1)
        queries, keys, values = mx.split(self.qkv(states[:, :anchors]), 3, axis=-1)
        if anchors < x.shape[1]:
            queries = mx.concatenate([queries, self.q(states[:, anchors:])], axis=1)
        visible = visible_keys(None if mask is None else mask[:, :anchors])
        queries, keys, values = (split_heads(part, self.num_heads) for part in (queries, keys, values))
        mixed = self.out(merge_heads(attend(queries, keys, values, visible, self.dropout)))
        if back is not None:
            mixed = mx.take_along_axis(mixed, back[..., None], axis=1)
        return mixed.astype(x.dtype)


class HopfieldAttention(nn.Module):
    """Modern Hopfield layer (Ramsauer et al. 2021): self-attention whose normed queries are refined by retrieval.

    With ``update_steps_max`` steps, ``q <- softmax(q K^T / sqrt d) K`` is repeated until the attention map of a row and
    head changes by less than ``update_steps_eps`` (Frobenius norm over its real queries).

    Args:
        dim: Hidden size D.
        num_heads: Wanted number of heads; the largest divisor of D up to it is taken.
        dropout: Rate on the attention weights.
        update_steps_max: Most refinements; 0: plain attention on normed queries and keys.
        update_steps_eps: Change below which a row and head is done.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        dropout: float = 0.0,
        update_steps_max: int = 0,
        update_steps_eps: float = 1e-4,
    ):
        super().__init__()
        self.num_heads = head_count(dim, num_heads)
        size = dim // self.num_heads
        self.update_steps_max = update_steps_max
        self.update_steps_eps = update_steps_eps
        self.qkv = glorot_linear(dim, 3 * dim)
        self.query_norm = nn.LayerNorm(size, eps=1e-5)
        self.key_norm = nn.LayerNorm(size, eps=1e-5)
        self.out = glorot_linear(dim, dim)
        self.dropout = WeightDropout(dropout)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        states, mask = masked_input(x, attention_mask)
        queries, keys, values = (split_heads(part, self.num_heads) for part in mx.split(self.qkv(states), 3, axis=-1))
        queries, keys = self.query_norm(queries), self.key_norm(keys)
        if self.update_steps_max:
            queries = self._retrieve(queries, keys, mask)
        mixed = attend(queries, keys, values, visible_keys(mask), self.dropout)
        return self.out(merge_heads(mixed)).astype(x.dtype)

    def _retrieve(self, queries: mx.array, keys: mx.array, mask: mx.array | None) -> mx.array:
        visible = visible_keys(mask)
        real = 1.0 if mask is None else mask[:, None, :, None]

        def association(queries: mx.array) -> mx.array:
            scores = ((queries * queries.shape[-1] ** -0.5) @ keys.swapaxes(-1, -2)).astype(mx.float32)
            if visible is not None:
                scores = mx.where(visible, scores, mx.finfo(mx.float32).min)
            return mx.softmax(scores, axis=-1)

        # A fixed number of steps with finished heads held still: no value has to be read back in between.
        weights = association(queries)
        for _ in range(self.update_steps_max):
            refined = weights.astype(keys.dtype) @ keys
            new_weights = association(refined)
            change = mx.sum(mx.square(new_weights - weights) * real, axis=(2, 3), keepdims=True)
            queries = mx.where(change < self.update_steps_eps**2, queries, refined)
            weights = mx.where(change < self.update_steps_eps**2, weights, new_weights)
        return queries
