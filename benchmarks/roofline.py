"""How fast this machine is right now, and how many operations a model needs: achieved over possible.

Units: operations are floating point (a multiply-add is two); seconds; bytes.
Dimensions: H hidden size, I intermediate size, L tokens of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from benchmarks.timing import rounds
from mlx_bert import blas
from mlx_bert.core import BertCore
from mlx_bert.encoders.base import EncoderConfig
from mlx_bert.inference.batching import compute_streams

MARGIN = 1.02  # a result this much above the measured peak is a mistake, not a feat


@dataclass(frozen=True)
class Roofline:
    """The machine, measured.

    Attributes:
        matmul_flops: operations a second of the best matrix product at the model's shapes.
        copy_bytes: bytes a second, read and written, of a large copy.
        empty_seconds: one evaluation of next to nothing.
    """

    matmul_flops: float
    copy_bytes: float
    empty_seconds: float


def measure(config: EncoderConfig, tokens: int = 4096, dtype: mx.Dtype = mx.float32, count: int = 5) -> Roofline:
    """Measure matrix products at the shapes of a model's layers, a copy, and an empty evaluation."""
    big = mx.zeros((16, 1024, 1024), dtype=mx.float32)
    mx.eval(big)
    copy = min(rounds(lambda: mx.eval(big + 1), count))
    one = mx.array(1.0)
    empty = min(rounds(lambda: mx.eval(one + 1), 50))
    return Roofline(matmul_peak(config, tokens, dtype, count), 2 * big.nbytes / copy, empty)


def matmul_peak(config: EncoderConfig, tokens: int = 4096, dtype: mx.Dtype = mx.float32, count: int = 2) -> float:
    """Operations a second of the best matrix product at the shapes of a model's layers.

    The best of all rounds and shapes counts, on one CPU stream with all threads and on several with one each: it must
    bound whatever the model does.
    """
    H, I = config.hidden_size, getattr(config, "intermediate_size", 4 * config.hidden_size)
    best = 0.0
    streams = compute_streams()
    for rows, inner, columns in ((tokens, H, 3 * H), (tokens, H, I), (tokens, I, H), (1024, 1024, 1024)):
        x, w = mx.random.normal((rows, inner)).astype(dtype), mx.random.normal((columns, inner)).astype(dtype)
        mx.eval(x, w)
        for used in {1, len(streams)}:
            chosen = streams[:used]

            def products(x: mx.array = x, w: mx.array = w, chosen: list[mx.Stream] = chosen) -> None:
                mx.eval([mx.matmul(x, w.T, stream=stream) for stream in chosen])

            operations = 2 * rows * inner * columns * used
            with blas.single_threaded() if used > 1 else nullcontext():
                best = max(best, operations / min(rounds(products, count, warmup=1)))
    return best


def model_flops(core: BertCore, lengths: Sequence[int]) -> int:
    """Operations of an encoder on real tokens: what it must do. Padding, embeddings, norms and the pooler are left out.

    A token and layer take two for each weight of a matrix (BERT: ``8 H^2 + 4 H I``; with a gated MLP ``8 H^2 + 6 H I``)
    and ``4 L H`` for scores and weighted values; for a local layer L is at most its window.
    """
    per_token = sum(
        2 * matrix_size(module)
        for name, module in core.encoder.named_modules()
        if isinstance(module, nn.Linear | nn.QuantizedLinear) and not name.startswith(("embeddings", "pooler"))
    )
    shared_by = core.config.num_hidden_layers / len(
        getattr(core.encoder, "layers", [None] * core.config.num_hidden_layers)
    )
    windows = layer_windows(core.config)
    total = 0.0
    for length in lengths:
        attention = sum(4 * (length if window is None else min(length, window)) for window in windows)
        total += length * (per_token * shared_by + attention * core.config.hidden_size)
    return round(total)


def matrix_size(layer: nn.Linear | nn.QuantizedLinear) -> int:
    """Weights of a layer, however they are packed."""
    if isinstance(layer, nn.QuantizedLinear):
        return layer.scales.size * layer.group_size
    return layer.weight.size


def layer_windows(config: EncoderConfig) -> list[int | None]:
    """For each layer the tokens that one token sees, or None for all."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [None] * config.num_hidden_layers
    width = getattr(config, "local_attention", None) or config.sliding_window  # ModernBERT's name, Gemma's
    window = 2 * (width // 2) + 1
    return [window if kind == "sliding_attention" else None for kind in kinds]


def shares_of_peak(operations: float, seconds: Sequence[float], peaks: Sequence[float]) -> list[float]:
    """Share of a round's own peak that was reached in each round.

    Raises:
        ValueError: more operations a second than the best matrix product of all rounds; see :func:`utilisation`.
    """
    utilisation(operations, min(seconds), max(peaks))
    return [operations / each / peak for each, peak in zip(seconds, peaks, strict=True)]


def utilisation(operations: float, seconds: float, peak: float) -> float:
    """Share of the peak that was reached.

    Raises:
        ValueError: more than the peak: the count, the clock or the peak is wrong.
    """
    share = operations / seconds / peak
    if share > MARGIN:
        raise ValueError(
            f"[benchmarks] expected at most the measured peak of {peak / 1e9:.1f} GFLOP/s but got "
            f"{operations / seconds / 1e9:.1f}. Something was not evaluated, or other work disturbed the calibration."
        )
    return share
