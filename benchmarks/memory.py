"""What stays allocated while lengths vary, and what a conversion needs.

After many calls it must be what it was after a few; and a converter's growth must not depend on the checkpoint's size.
"""

from __future__ import annotations

import argparse
import random
import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks import report
from benchmarks.converting import measure
from benchmarks.models import find_model, label
from mlx_bert.inference.encode import SentenceEncoder


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--calls", type=int, default=10_000, metavar="N", help="calls of all lengths (default: 10000)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], metavar="N",
                        help="share the calls among N threads; several for one after another (default: 1)")  # fmt: skip
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
    rows = []
    for threads in args.threads:
        rows += shared_calls(encoder, args.calls, threads)
    note = f"Process memory grew by {growth_mb(rows):.1f} MB from the first tenth of the calls to the last."
    if args.converting:
        rows += measure(args.converting)
    return report.build("memory", {"model": label(args.model), "dtype": args.dtype or "as loaded"}, rows, note=note)


def shared_calls(encoder: SentenceEncoder, calls: int, threads: int) -> list[dict[str, Any]]:
    """Call an encoder with one to three texts of any length, from so many threads together.

    Returns:
        What is allocated after each tenth of the calls, and near their beginning.

    Raises:
        ValueError: fewer than one thread or call, or a result that changed: threads got into each other's way.
    """
    if min(calls, threads) < 1:
        raise ValueError(f"[memory] expected at least 1 call and 1 thread but got {calls} and {threads}.")
    source, lock, done, failures = random.Random(0), threading.Lock(), 0, []
    marks = {max(1, calls * part // 10) for part in range(1, 11)} | {1, min(100, calls)}
    probe = ["a " * length for length in (3, 17, 40)]
    expected = encoder.encode(probe)
    rows: list[dict[str, Any]] = []
    mx.reset_peak_memory()

    def work(share: int) -> None:
        nonlocal done
        for _ in range(share):
            with lock:
                texts = ["a " * source.randint(1, encoder.max_seq_length) for _ in range(source.randint(1, 3))]
            encoder.encode(texts)
            with lock:
                done += 1
                number = done
            if number in marks:
                if not np.allclose(encoder.encode(probe), expected, atol=1e-4):
                    raise ValueError(
                        f"[memory] call {number} with {threads} threads gave other embeddings than the first."
                    )
                rows.append({"threads": threads, "calls": number, **allocated()})

    def guarded(share: int) -> None:
        try:
            work(share)
        except Exception as error:
            failures.append(error)

    shares = [calls // threads + (number < calls % threads) for number in range(threads)]
    run(guarded, shares)
    if failures:
        raise failures[0]
    return sorted(rows, key=lambda row: row["calls"])


def run(work: Callable[[int], None], shares: list[int]) -> None:
    """One share alone in this thread, several in threads of their own."""
    if len(shares) == 1:
        work(shares[0])
        return
    pool = [threading.Thread(target=work, args=(share,)) for share in shares]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()


def allocated() -> dict[str, float]:
    """MLX's buffers in use, those it keeps for reuse, the most in use so far, and the process, in MB."""
    return {
        "active MB": mx.get_active_memory() / 1e6,
        "cache MB": mx.get_cache_memory() / 1e6,
        "peak MB": mx.get_peak_memory() / 1e6,
        "process MB": resident_bytes() / 1e6,
    }


def growth_mb(rows: list[dict[str, Any]]) -> float:
    """How much the process grew, in MB, from the first tenth of the calls to the last, with any number of threads."""
    most = []
    for threads in {row["threads"] for row in rows}:
        own = [row for row in rows if row["threads"] == threads]
        early = max(row["process MB"] for row in own if row["calls"] <= max(100, own[-1]["calls"] // 10))
        most.append(own[-1]["process MB"] - early)
    return max(most)


def resident_bytes() -> float:
    """Memory of this process: what is resident now on Linux, the most it ever was elsewhere."""
    try:
        with open("/proc/self/status", encoding="utf-8") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
