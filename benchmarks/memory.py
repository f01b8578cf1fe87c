"""What stays allocated while lengths vary, and what a conversion needs.

After many calls it must be what it was after a few; and a converter's growth must not depend on the checkpoint's size.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import mlx.core as mx

from benchmarks import report
from benchmarks.converting import measure
from benchmarks.models import find_model, label
from mlx_bert.inference.encode import SentenceEncoder


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--calls", type=int, default=10_000, metavar="N", help="calls of all lengths (default: 10000)")
    parser.add_argument(
        "--converting",
        type=int,
        default=2000,
        metavar="MB",
        help="also convert a made-up checkpoint of this size; 0 for none (default: 2000)",
    )


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the result."""
    encoder = SentenceEncoder.from_pretrained(find_model(args.model), dtype=args.dtype)
    source = random.Random(0)
    rows = []
    mx.reset_peak_memory()
    marks = {max(1, args.calls * part // 10) for part in range(1, 11)} | {1, min(100, args.calls)}
    for call in range(1, args.calls + 1):
        texts = ["a " * source.randint(1, encoder.max_seq_length) for _ in range(source.randint(1, 3))]
        encoder.encode(texts)
        if call in marks:
            rows.append(
                {
                    "calls": call,
                    "active MB": mx.get_active_memory() / 1e6,
                    "cache MB": mx.get_cache_memory() / 1e6,
                    "peak MB": mx.get_peak_memory() / 1e6,
                    "process MB": resident_bytes() / 1e6,
                }
            )
    if args.converting:
        rows += measure(args.converting)
    return report.build("memory", {"model": label(args.model), "dtype": args.dtype or "as loaded"}, rows)


def resident_bytes() -> float:
    """Memory of this process: what is resident now on Linux, the most it ever was elsewhere."""
    try:
        with open("/proc/self/status", encoding="utf-8") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
