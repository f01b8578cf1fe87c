"""GELU and attention for MLX's CPU backend, in plain arithmetic that a compiler turns into vector instructions.

MLX computes erf and exp on a CPU one number at a time: on x86 the GELU of an MLP took longer than both its matrix
products, and the softmax longer than both of attention's. The functions below are the same functions to float32's
precision, several times faster there. On a GPU ``nn.gelu`` and the fused attention are the right ones.

Two things keep a compiled function from becoming vector instructions, and are kept out of them: ``maximum`` and
``minimum`` (MLX's care for NaN makes them scalar), and expressions deeper than one kernel holds. MLX then cuts them
where it likes and hands constants over as arrays without strides: five times slower. Hence two short functions each.

Dimensions: B batch, H attention heads, L tokens, d = D / H.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn

from mlx_bert.encoders.cpu_trace import apart, is_traced

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
# The same on max(t, 1) times it: 2e-7 with and without the product with t. The derivative takes it without.
ERFC_ALONE = (
    1.0905076773511684,
    0.10876548618959368,
    0.04878737746308119,
    0.009540883412813938,
    0.0008144501323498528,
    0.0003216935783068274,
    2.1525712840315958e-05,
    1.6409950800849726e-06,
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
PEAK = (2 * math.pi) ** -0.5  # of the normal density
# Added to a score that must not count: half of float32's lowest, so that the sum stays finite.
CLOSED = mx.finfo(mx.float32).min / 2
# Attention scores at a time: 4 MB, which stay in the caches from product to product, whatever the batch and the length.
TILE = 1 << 20
MIN_QUERIES = 256  # of a tile all the same: products of fewer rows are slower
SPREAD_FROM = 2048  # tokens of a batch from which sharing it out among the cores pays

_own = threading.local()  # the streams that the present batch is shared out among


def suits(x: mx.array) -> bool:
    """Whether ``x`` will be computed on a CPU in float32, where the functions of this file pay."""
    return x.dtype == mx.float32 and mx.default_device().type == mx.DeviceType.cpu


@contextmanager
def spread_over(streams: Sequence[mx.Stream]) -> Iterator[None]:
    """Share out the work of one batch among streams, a thread each, where it is long enough.

    For a batch that is computed alone. Matrix products should have one thread each meanwhile.
    """
    _own.streams = list(streams)
    try:
        yield
    finally:
        _own.streams = []


def by_rows(function: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
    """``function(x)`` for a function that treats each token alone; under :func:`spread_over` each stream has a share.

    Args:
        function: ``(B, L, D)`` to ``(B, L, any)``.
        x: ``(B, L, D)``.
    """
    streams = _streams_for(x, x.shape[0] * x.shape[1])
    if not streams:
        return function(x)
    axis = 0 if x.shape[0] >= len(streams) else 1
    share = -(-x.shape[axis] // len(streams))
    parts = []
    for stream, part in zip(streams, mx.split(x, range(share, x.shape[axis], share), axis=axis), strict=False):
        with mx.stream(stream):
            parts.append(function(part))
    return mx.concatenate(parts, axis=axis)


def side_by_side(function: Callable[[mx.array], mx.array], *heads: mx.array) -> list[mx.array]:
    """``function`` of each array ``(B, H, L, d)``; under :func:`spread_over` the streams take them by turns."""
    streams = _streams_for(heads[0], heads[0].shape[0] * heads[0].shape[2]) or [mx.default_stream(mx.default_device())]
    found = []
    for x, stream in zip(heads, itertools.cycle(streams), strict=False):
        with mx.stream(stream):
            found.append(function(x))
    return found


def _streams_for(x: mx.array, tokens: int) -> list[mx.Stream]:
    """The streams of :func:`spread_over`, if there are several and the batch is long enough."""
    streams = getattr(_own, "streams", [])
    return streams if len(streams) > 1 and suits(x) and tokens >= SPREAD_FROM else []


def gelu(x: mx.array) -> mx.array:
    """``x * (1 + erf(x / sqrt(2))) / 2``, exact as in ``nn.gelu``; on a CPU to 4e-7 for every finite ``x``."""
    if not suits(x):
        return nn.gelu(x)
    return _trained_gelu(x) if is_traced() else _vector_gelu(x)


def _vector_gelu(x: mx.array) -> mx.array:
    return _gelu(x, _inverse_root(x))


@mx.custom_function
def _trained_gelu(x: mx.array) -> mx.array:
    return apart(_vector_gelu, x)


@_trained_gelu.vjp
def _trained_gelu_vjp(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
    """MLX's own, through the terms of the polynomial, took ten times as long and kept several arrays of x's size."""
    return apart(lambda x, c: _gelu_slope(x, c, _inverse_root_alone(x), _exp_eighth_square(x)), x, cotangent)


def _erfc_series(x: mx.array, c: tuple[float, ...]) -> mx.array:
    """``(erfc(|x| / sqrt(2)) / 2) ** (-1 / 8)``."""
    t = mx.abs(x)
    t2 = t * t
    return (c[0] + c[1] * t) + t2 * (c[2] + c[3] * t) + (t2 * t2) * ((c[4] + c[5] * t) + t2 * (c[6] + t2 * c[7]))


@mx.compile
def _inverse_root(x: mx.array) -> mx.array:
    return _erfc_series(x, ERFC)


@mx.compile
def _inverse_root_alone(x: mx.array) -> mx.array:
    return _erfc_series(x, ERFC_ALONE)


@mx.compile
def _gelu(x: mx.array, p: mx.array) -> mx.array:
    """``max(x, 0) - |x| / 2 erfc(|x| / sqrt(2))``. Inverted before it is raised, so that gradients stay finite."""
    t, q = mx.abs(x), 1.0 / p
    q = q * q
    q = q * q
    return 0.5 * (x + t) - t * (q * q)


@mx.compile
def _gelu_slope(x: mx.array, cotangent: mx.array, p: mx.array, e: mx.array) -> mx.array:
    """``cotangent * (Phi(x) + x phi(x))``, with the normal distribution and its density from their inverse roots."""
    q, f = 1.0 / p, 1.0 / e
    q, f = q * q, f * f
    q, f = q * q, f * f
    return cotangent * ((0.5 + mx.sign(x) * (0.5 - q * q)) + (PEAK * x) * f)


@mx.custom_function
def exp_negative(t: mx.array) -> mx.array:
    """``exp(-t)`` for ``t >= 0``: to 1.2e-6 of the value up to t = 16 (as ``mx.exp`` on a CPU), to 1e-12 beyond."""
    return _inverse_fourth_power(_exp_quarter(t))


@exp_negative.vjp
def _exp_negative_vjp(t: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    """MLX's own would multiply 0 by infinity where the polynomial overflows."""
    return -cotangent * output


def _exp_series(t: mx.array) -> mx.array:
    """``exp(t / 4)``; beyond t = 16 it only grows, without an overflow that would make NaN."""
    c, t2 = EXP, t * t
    t4 = t2 * t2
    low = (c[0] + c[1] * t) + t2 * (c[2] + c[3] * t)
    middle = (c[4] + c[5] * t) + t2 * (c[6] + c[7] * t)
    high = (c[8] + c[9] * t) + t2 * (c[10] + c[11] * t)
    return low + t4 * (middle + t4 * high)


@mx.compile
def _exp_quarter(t: mx.array) -> mx.array:
    return _exp_series(t)


@mx.compile
def _exp_eighth_square(x: mx.array) -> mx.array:
    """``exp(x ** 2 / 8)``."""
    return _exp_series((0.5 * x) * x)


@mx.compile
def _inverse_fourth_power(p: mx.array) -> mx.array:
    q = 1.0 / p
    q = q * q
    return q * q


def attention(query: mx.array, key: mx.array, value: mx.array, mask: mx.array | None, scale: float) -> mx.array:
    """``softmax(scale * query @ key + mask) @ value`` in float32, :data:`TILE` scores at a time.

    Args:
        query, key, value: ``(B, H, L, d)``; keys and values may have fewer heads, each shared by several queries'.
        mask: boolean, True where attention is allowed, or to be added; broadcast to ``(B, H, L, L)``; or None.

    Returns:
        ``(B, H, L, d)``.
    """
    if (shared_by := query.shape[1] // key.shape[1]) > 1:
        key, value = mx.repeat(key, shared_by, axis=1), mx.repeat(value, shared_by, axis=1)
    if mask is not None and mask.dtype == mx.bool_:
        mask = mx.where(mask, 0.0, CLOSED)
    B, H, L, _ = query.shape
    keys = key.shape[2]
    # Keys and values may be strided views, which matmul wants copied: multiplying by 1 is that copy, made faster.
    query, key, value = side_by_side(lambda x: x * (scale if x is query else 1.0), query, key, value)
    key = key.swapaxes(-1, -2)
    if B * H * L * keys <= TILE:
        return _attend(query, key, value, mask)
    rows, heads = max(1, TILE // (H * L * keys)), min(H, max(1, TILE // (L * keys)))
    queries = min(L, max(MIN_QUERIES, TILE // keys))

    turns = _Turns()

    def tile(row: int, head: int, first: int) -> mx.array:
        place = (slice(row, row + rows), slice(head, head + heads), slice(first, first + queries))
        with turns.next():
            part = None if mask is None else _cut(mask, place)
            return turns.attend(query[place], key[place[:2]], value[place[:2]], part)

    # (B, L, H, d) is what the projection behind takes: putting the tiles together is the only copy on the way there.
    return _joined(
        [
            _joined([_joined([tile(b, h, i) for i in range(0, L, queries)], 1) for h in range(0, H, heads)], 2)
            for b in range(0, B, rows)
        ],
        0,
    ).swapaxes(1, 2)


def attention_in_blocks(
    query: mx.array, key: mx.array, value: mx.array, mask: mx.array, window: int, scale: float
) -> mx.array:
    """``softmax(scale * query @ key + mask) @ value`` in float32 for blocks of queries and the keys around them.

    Args:
        query, key, value: ``(B, H, L, d)``.
        mask: boolean ``(B * n, 1, window, 3 * window)`` for the ``n`` blocks of each row: the block before, itself, and
            the one behind.
        window: tokens of a block.
        scale: factor on the scores.

    Returns:
        ``(B, H, L, d)``.
    """
    B, H, L, _ = query.shape
    query, key, value = side_by_side(lambda x: x * (scale if x is query else 1.0), query, key, value)
    key = key.swapaxes(-1, -2)
    mask = mx.where(mask, 0.0, CLOSED).reshape(B, -1, 1, window, 3 * window)
    rows = min(B, max(1, TILE // (H * 3 * window * window)))
    turns = _Turns()

    def block(row: int, first: int) -> mx.array:
        own, last, begin = slice(row, row + rows), min(first + window, L), first - window
        near = slice(max(0, begin), min(L, last + window))
        with turns.next():
            part = mask[own, first // window, :, : last - first, near.start - begin : near.stop - begin]
            return turns.attend(query[own, :, first:last], key[own, :, :, near], value[own, :, near], part)

    return _joined(
        [_joined([block(row, first) for first in range(0, L, window)], 1) for row in range(0, B, rows)], 0
    ).swapaxes(1, 2)


class _Turns:
    """Parts of one attention, computed one after the other on each of the streams that share it out.

    MLX takes the operations of several streams in turn only while few of them (20) could come next. Parts that all
    could would make it finish one stream's batch before it hands the other stream its own.
    """

    def __init__(self) -> None:
        self._streams = itertools.cycle(getattr(_own, "streams", []) or [mx.default_stream(mx.cpu)])
        self._latest: dict[mx.Stream, mx.array] = {}

    def next(self) -> mx.StreamContext:
        """The next part is computed on the next stream."""
        self._stream = next(self._streams)
        return mx.stream(self._stream)

    def attend(self, query: mx.array, key: mx.array, value: mx.array, mask: mx.array | None) -> mx.array:
        """:func:`_attend` as ``(B, L, H, d)``, after the part before it on this stream."""
        if self._stream in self._latest:
            (query,) = mx.depends([query], [self._latest[self._stream]])
        self._latest[self._stream] = found = _attend(query, key, value, mask).swapaxes(1, 2)
        return found


def _attend(query: mx.array, key: mx.array, value: mx.array, mask: mx.array | None) -> mx.array:
    """``softmax(query @ key + mask) @ value``; ``key`` is ``(B, H, d, L)``."""
    scores = query @ key
    if mask is not None:
        scores = scores + mask
    weights = exp_negative(mx.stop_gradient(_row_max(scores)) - scores)
    # A product with ones adds up a row several times faster than mx.sum.
    return (weights @ value) / (weights @ mx.ones((weights.shape[-1], 1)))


def _row_max(scores: mx.array) -> mx.array:
    """``mx.max`` over the last axis, kept; long rows in pieces side by side, which are vector instructions."""
    *rest, length = scores.shape
    pieces = 64 if length >= 2048 else 8
    if length >= 128 and length % pieces == 0:
        scores = mx.max(scores.reshape(*rest, pieces, length // pieces), axis=-2)
    return mx.max(scores, axis=-1, keepdims=True)


def _cut(mask: mx.array, place: tuple[slice, slice, slice]) -> mx.array:
    """The part of a mask, which may be 1 long where it is broadcast, that belongs to a part of the scores."""
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    return mask[tuple(slice(None) if size == 1 else part for size, part in zip(mask.shape, place, strict=False))]


def _joined(parts: list[mx.array], axis: int) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=axis)
