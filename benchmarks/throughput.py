"""Texts and tokens a second on ragged and on fixed shapes, and what share of the machine that is.

Dimensions: B batch, L tokens.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from benchmarks import report, roofline
from benchmarks.corpus import ragged_texts
from benchmarks.models import find_model, label
from benchmarks.timing import rounds
from mlx_bert import blas
from mlx_bert.inference.batching import compute_streams, run_batches
from mlx_bert.inference.encode import SentenceEncoder

SHAPES = ((32, 128), (8, 512))


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--texts", type=int, default=256, metavar="N", help="texts of the ragged corpus (default: 256)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="as for encode (default: 32)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds, the median counts (default: 5)")


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the result."""
    encoder = SentenceEncoder.from_pretrained(find_model(args.model), dtype=args.dtype)
    parameters = [array for _, array in tree_flatten(encoder.core.encoder.parameters())]
    dtype = next(array.dtype for array in parameters if mx.issubdtype(array.dtype, mx.floating))
    before = roofline.measure(encoder.core.config, dtype=dtype)
    texts = ragged_texts(args.texts)
    rows = [ragged(encoder, texts, args.batch_size, args.rounds)]
    for batch, length in SHAPES:
        if length <= encoder.core.config.max_tokens:
            rows.append(fixed(encoder, batch, length, args.rounds))
    after = roofline.measure(encoder.core.config, dtype=dtype)
    best = max(before, after, key=lambda measured: measured.matmul_flops)
    for row in rows:
        row["of peak"] = roofline.utilisation(row.pop("operations"), row["seconds"], best.matmul_flops)
    settings = {
        "model": label(args.model),
        "dtype": str(dtype).removeprefix("mlx.core."),
        "batch_size": args.batch_size,
    }
    return report.build("throughput", settings, rows, roofline=asdict(best))


def ragged(encoder: SentenceEncoder, texts: Sequence[str], batch_size: int, count: int) -> dict[str, Any]:
    """``encode`` over texts of many lengths, tokenising included."""
    lengths = [len(e) for e in encoder.tokenizer.encode(list(texts), max_length=encoder.max_seq_length)]
    padded = 0
    for _, ids in run_batches(
        texts,
        encoder.tokenizer,
        lambda batch, _: batch.input_ids,
        batch_size=batch_size,
        max_length=encoder.max_seq_length,
    ):
        padded += ids.size
    mx.clear_cache()
    mx.reset_peak_memory()
    taken = statistics.median(rounds(lambda: encoder.encode(texts, batch_size, show_progress_bar=False), count))
    return _row(encoder, f"ragged, {len(texts)} texts", lengths, taken, 1 - sum(lengths) / padded)


def fixed(encoder: SentenceEncoder, batch: int, length: int, count: int) -> dict[str, Any]:
    """The encoder and its modules alone, on one shape without padding; a batch on each stream that ``encode`` uses."""
    random = np.random.default_rng(0)
    streams = compute_streams()
    high = encoder.core.config.vocab_size
    ids = [mx.array(random.integers(high // 2, high, (batch, length), dtype=np.int32)) for _ in streams]
    mx.eval(ids)

    def call() -> None:
        outputs = []
        for stream, some in zip(streams, ids, strict=True):
            with mx.stream(stream):
                outputs.append(encoder.core(some).last_hidden_state.sum(axis=1))
                mx.async_eval(outputs[-1])
        mx.eval(outputs)

    mx.clear_cache()
    mx.reset_peak_memory()
    with blas.single_threaded() if len(streams) > 1 else nullcontext():
        taken = statistics.median(rounds(call, count))
    return _row(encoder, f"{batch} x {length}", [length] * batch * len(streams), taken, 0.0)


def _row(encoder: SentenceEncoder, what: str, lengths: Sequence[int], taken: float, padding: float) -> dict[str, Any]:
    operations = roofline.model_flops(encoder.core, lengths)
    return {
        "what": what,
        "seconds": taken,
        "texts/s": len(lengths) / taken,
        "tokens/s": sum(lengths) / taken,
        "GFLOP/s": operations / taken / 1e9,
        "padding": padding,
        "peak MB": mx.get_peak_memory() / 1e6,
        "operations": operations,
    }
