"""Attention with dropout and a derivative of its own, for training on MLX's CPU backend.

MLX's derivative keeps six arrays of the size of the scores and passes over each. Here a tile of scores at a time is
computed again, stays in the caches, and only each row's largest score and sum are kept (Dao et al. 2022,
https://arxiv.org/abs/2205.14135, section 3.1).

Dimensions: B batch, H attention heads, L tokens, d = D / H.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_bert.encoders import cpu
from mlx_bert.encoders.cpu_trace import apart

Place = tuple[slice, slice, slice]


def trained_attention(
    query: mx.array, key: mx.array, value: mx.array, mask: mx.array | None, scale: float, dropout: float
) -> mx.array:
    """``dropped(softmax(scale * query @ key + mask)) @ value`` in float32, whose gradients take little memory.

    Args:
        query, key, value: ``(B, H, L, d)``; keys and values may have fewer heads, each shared by several queries'.
        mask: boolean, True where attention is allowed, or to be added; broadcast to ``(B, H, L, L)``; or None.
        dropout: probability of dropping an attention probability.

    Returns:
        ``(B, H, L, d)``.
    """
    if (shared_by := query.shape[1] // key.shape[1]) > 1:
        key, value = mx.repeat(key, shared_by, axis=1), mx.repeat(value, shared_by, axis=1)
    added = [] if mask is None else [mx.where(mask, 0.0, cpu.CLOSED) if mask.dtype == mx.bool_ else mask]
    keep = mx.random.bernoulli(1 - dropout, (*query.shape[:3], key.shape[2])) if dropout > 0 else None
    drawn = _Attention(keep, scale, dropout)

    @mx.custom_function
    def attended(*inputs: mx.array) -> list[mx.array]:
        return apart(drawn.forward, *inputs)

    @attended.vjp
    def derivative(inputs: Sequence[mx.array], cotangents: Sequence[mx.array], rest: Sequence[mx.array]) -> Any:
        @mx.custom_function
        def gradients(cotangent: mx.array, *inputs: mx.array) -> list[mx.array]:
            return apart(lambda c, *x: drawn.backward((c, *rest), *x), cotangent, *inputs)

        @gradients.vjp
        def second(primals: Sequence[mx.array], cotangents: Sequence[mx.array], _: Any) -> list[mx.array]:
            def plain(*x: mx.array) -> list[mx.array]:
                return [drawn.plain(*x)]

            return mx.vjp(lambda c, *x: mx.vjp(plain, list(x), [c])[1], list(primals), list(cotangents))[1]

        return gradients(cotangents[0], *inputs)

    return attended(query, key, value, *added)[0]


class _Attention(NamedTuple):
    """Attention as a function of queries, keys, values ``(B, H, L, d)`` and maybe one array added to the scores.

    Attributes:
        keep: which probabilities dropout keeps ``(B, H, L, L)``; None for all.
        scale, dropout: as in :func:`trained_attention`.
    """

    keep: mx.array | None
    scale: float
    dropout: float

    def plain(self, query: mx.array, key: mx.array, value: mx.array, *added: mx.array) -> mx.array:
        """The same for MLX to differentiate, where derivatives of derivatives are asked for."""
        scores = self.scale * query @ key.swapaxes(-1, -2)
        weights = mx.softmax(sum(added, scores), axis=-1)
        return (weights if self.keep is None else weights * self.keep / (1 - self.dropout)) @ value

    def forward(self, query: mx.array, key: mx.array, value: mx.array, *added: mx.array) -> list[mx.array]:
        """The result ``(B, H, L, d)``, and of each row of scores the largest and the sum of exponentials."""
        query, key, value = query * self.scale, (key * 1.0).swapaxes(-1, -2), value * (1 / (1 - self.dropout))

        def tile(place: Place) -> list[mx.array]:
            scores = _scores(query, key, added, place)
            highest = cpu._row_max(scores)
            weights = cpu.exp_negative(highest - scores)
            total = weights @ mx.ones((weights.shape[-1], 1))
            return [(self._kept(weights, place) @ value[place[:2]]) / total, highest, total]

        return _tiled(tile, (*query.shape[:3], key.shape[3]), [2, 2, 2])

    def backward(
        self, rest: Sequence[mx.array], query: mx.array, key: mx.array, value: mx.array, *added: mx.array
    ) -> list[mx.array]:
        """Gradients for query, key, value and what is added; ``rest`` is the result's gradient and what came out."""
        cotangent, result, highest, total = rest
        query, key, value = query * self.scale, key * 1.0, (value * 1.0).swapaxes(-1, -2)
        across = key.swapaxes(-1, -2)
        cotangent = cotangent / total
        # The sum over a row of probability times its gradient is that over the result times its own.
        mean = mx.sum(cotangent * result, axis=-1, keepdims=True)
        cotangent = cotangent * (1 / (1 - self.dropout))

        def tile(place: Place) -> list[mx.array]:
            weights = cpu.exp_negative(highest[place] - _scores(query, across, added, place))
            own = cotangent[place]
            gradient = weights * (self._kept(own @ value[place[:2]], place) - mean[place])
            of_key = gradient.swapaxes(-1, -2) @ query[place]
            of_value = self._kept(weights, place).swapaxes(-1, -2) @ own
            return [gradient @ key[place[:2]], of_key, of_value, *[gradient] * len(added)]

        shape = (*query.shape[:3], key.shape[2])
        found = _tiled(tile, shape, [2, None, None, *[2] * len(added)])
        for number, array in enumerate(added, 3):
            found[number] = _summed_to(found[number], array.shape)
        return [found[0] * self.scale, *found[1:]]

    def _kept(self, array: mx.array, place: Place) -> mx.array:
        return array if self.keep is None else _dropped(array, self.keep[place])


def _scores(query: mx.array, key: mx.array, added: Sequence[mx.array], place: Place) -> mx.array:
    scores = query[place] @ key[place[:2]]
    return scores + cpu._cut(added[0], place) if added else scores


@mx.compile
def _dropped(array: mx.array, keep: mx.array) -> mx.array:
    return array * keep


def _tiled(
    tile: Callable[[Place], list[mx.array]], shape: tuple[int, int, int, int], axes: Sequence[int | None]
) -> list[mx.array]:
    """What ``tile`` gives for each part of the scores, put together along the queries, or (None) added up over them."""
    B, H, L, keys = shape
    rows, heads = max(1, cpu.TILE // (H * L * keys)), min(H, max(1, cpu.TILE // (L * keys)))
    queries = min(L, max(1, cpu.TILE // keys))

    def parts(size: int, step: int) -> Iterator[slice]:
        return (slice(start, start + step) for start in range(0, size, step))

    def joined(found: Sequence[list[mx.array]], axes: Sequence[int | None]) -> list[mx.array]:
        return [
            sum(column[1:], column[0]) if axis is None else cpu._joined(list(column), axis)
            for column, axis in zip(zip(*found, strict=True), axes, strict=True)
        ]

    def of_rows(row: slice) -> list[mx.array]:
        of_heads = [joined([tile((row, head, part)) for part in parts(L, queries)], axes) for head in parts(H, heads)]
        return joined(of_heads, [1] * len(axes))

    return joined([of_rows(row) for row in parts(B, rows)], [0] * len(axes))


def _summed_to(array: mx.array, shape: tuple[int, ...]) -> mx.array:
    """The gradient of a broadcast array of ``shape`` from that of what it was broadcast to."""
    padded = (1,) * (array.ndim - len(shape)) + shape
    axes = [axis for axis, size in enumerate(padded) if size == 1 != array.shape[axis]]
    return (mx.sum(array, axis=axes, keepdims=True) if axes else array).reshape(shape)
