"""Milliseconds for one text at a time, from short to long: the first call, and the calls after it."""

from __future__ import annotations

import argparse
from typing import Any

import mlx.core as mx

from benchmarks import report
from benchmarks.models import find_model, label
from benchmarks.timing import percentile, rounds, seconds
from mlx_bert.inference.encode import SentenceEncoder

LENGTHS = (8, 16, 32, 64, 128, 256, 512)


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--calls", type=int, default=50, metavar="N", help="timed calls at each length (default: 50)")


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the result."""
    encoder = SentenceEncoder.from_pretrained(find_model(args.model), dtype=args.dtype)
    encoder.max_seq_length = min(max(LENGTHS), encoder.core.config.max_tokens)
    rows = []
    for length in LENGTHS:
        if length > encoder.max_seq_length:
            break
        text = text_of(encoder, length)
        mx.clear_cache()
        cold = seconds(lambda text=text: encoder.encode(text))
        warm = rounds(lambda text=text: encoder.encode(text), args.calls)
        row: dict[str, Any] = {"tokens": length, "first ms": cold * 1e3}
        rows.append(row | {f"p{share}": percentile(warm, share / 100) * 1e3 for share in (50, 90, 99)})
    return report.build("latency", {"model": label(args.model), "dtype": args.dtype or "as loaded"}, rows)


def text_of(encoder: SentenceEncoder, length: int) -> str:
    """A text of exactly ``length`` tokens, special ones included.

    Raises:
        ValueError: the tokenizer makes none of repeated words.
    """
    for word in ("the", "a", "and"):
        text = " ".join([word] * (length - encoder.tokenizer.fast.num_special_tokens_to_add(False)))
        if len(encoder.tokenizer.encode([text], max_length=encoder.max_seq_length)[0]) == length:
            return text
    raise ValueError(f"[benchmarks] expected a text of {length} tokens but this tokenizer splits every word tried.")
