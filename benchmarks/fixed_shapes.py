"""Rows of one length as ``encode`` would compute them: in its pieces, on its streams, without padding."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext

import mlx.core as mx

from mlx_bert import blas
from mlx_bert.encoders import cpu
from mlx_bert.inference import batching


def in_pieces(forward: Callable[[mx.array], mx.array], ids: mx.array) -> mx.array:
    """``forward`` of token ids ``(B, L)``, evaluated; ``(B, ...)``."""
    batch, length = ids.shape
    rows = max(1, batching.token_budget(-(-batch * length // batching.TOKENS_PER_TEXT)) // length)
    pieces = [ids[start : start + rows] for start in range(0, batch, rows)]
    streams = batching.compute_streams()
    outputs = []
    with ExitStack() as stack:
        if len(streams) > 1 and (len(pieces) > 1 or length >= cpu.SPREAD_FROM):
            stack.enter_context(blas.single_threaded())
        for first in range(0, len(pieces), len(streams)):
            group = pieces[first : first + len(streams)]
            with cpu.spread_over(streams) if len(group) == 1 else nullcontext():
                started = []
                for piece, stream in zip(group, streams, strict=False):
                    with mx.stream(stream):
                        started.append(forward(piece))
            mx.async_eval(started)
            mx.eval(outputs[-len(streams) :])  # one group ahead
            outputs += started
        mx.eval(outputs)
    return mx.concatenate(outputs)
