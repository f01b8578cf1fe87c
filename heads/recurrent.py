"""Stacked, optionally bidirectional LSTM and GRU that respect the mask of each row.

Dimension key: B batch, L tokens, D input width, H hidden size of one direction.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

_CELLS = {"lstm": nn.LSTM, "gru": nn.GRU}


def pack_positions(mask: mx.array, backward: bool) -> mx.array:
    """Return, for each row, the order of positions that puts its real tokens first, `(B, L)` int32.

    Real tokens keep their order, or are reversed for the backward direction, so that a recurrence reads a row's real
    tokens before any padding wherever the padding stands.
    """
    length = mask.shape[1]
    index = mx.arange(length, dtype=mx.int32)
    rank = (length - 1 - index) if backward else index
    return mx.argsort(mx.where(mask, rank, rank + length), axis=1).astype(mx.int32)


class StackedRNN(nn.Module):
    """Layers of LSTM (Hochreiter & Schmidhuber 1997) or GRU (Cho et al. 2014) over `(B, L, D)`.

    Both directions read only real tokens: the backward one starts at the last real token. Dropout stands between the
    layers. Output `(B, L, H)`, or `(B, L, 2H)` with the forward half first when bidirectional; zero at padding.

    Args:
        input_size: D.
        hidden_size: H.
        num_layers: Number of layers.
        cell: `"lstm"` or `"gru"`.
        bidirectional: Whether a second recurrence reads each row backwards.
        dropout: Probability between the layers.

    Raises:
        ValueError: For an unknown cell or no layers.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        cell: str = "lstm",
        bidirectional: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        if cell not in _CELLS or num_layers < 1:
            raise ValueError(
                f"[StackedRNN] expected cell 'lstm' or 'gru' and at least one layer but got {cell!r} and {num_layers}. "
                "Correct them."
            )
        self.output_size = hidden_size * (2 if bidirectional else 1)
        sizes = [input_size] + [self.output_size] * (num_layers - 1)
        build = _CELLS[cell]
        self.forward_layers = [build(size, hidden_size) for size in sizes]
        self.backward_layers = [build(size, hidden_size) for size in sizes] if bidirectional else []
        self.dropout = nn.Dropout(dropout)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        mask = mx.ones(x.shape[:2], dtype=mx.bool_) if attention_mask is None else attention_mask.astype(mx.bool_)
        real = mx.expand_dims(mask, -1)
        orders = [pack_positions(mask, backward) for backward in (False, True)]
        zero = mx.zeros((), dtype=x.dtype)
        for number, layer in enumerate(self.forward_layers):
            x = mx.where(real, x if number == 0 else self.dropout(x), zero)
            parts = [_run(layer, x, None if attention_mask is None else orders[0])]
            if self.backward_layers:
                parts.append(_run(self.backward_layers[number], x, orders[1]))
            x = mx.where(real, mx.concatenate(parts, axis=-1), zero)
        return x


def _run(layer: nn.Module, x: mx.array, order: mx.array | None) -> mx.array:
    """Run a recurrence in the given order of positions and put each state back at its position."""
    packed = x if order is None else mx.take_along_axis(x, mx.expand_dims(order, -1), axis=1)
    states = layer(packed)
    states = states[0] if isinstance(states, tuple) else states
    if order is None:
        return states
    return mx.take_along_axis(states, mx.expand_dims(mx.argsort(order, axis=1), -1), axis=1)
