"""Seconds and bytes until a model is ready, and how long the commands take to say something.

Nothing is computed here, so that a copy in memory is what loading is held against: reading a file cannot be faster.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx

from benchmarks import report, roofline
from benchmarks.models import find_model, label
from benchmarks.timing import rounds, seconds
from mlx_bert.checkpoint import ready_folder, weight_files
from mlx_bert.core import BertCore

STARTS = {
    "import mlx_bert": ["-c", "import mlx_bert"],
    "mlx-bert --help": ["-m", "mlx_bert", "--help"],
    "python -m convert --help": ["-m", "convert", "--help"],
}


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="loads, the first of its own (default: 3)")


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the result.

    Raises:
        ValueError: fewer than one round.
    """
    if args.rounds < 1:
        raise ValueError(f"[benchmarks] expected --rounds of at least 1 but got {args.rounds}.")
    folder = ready_folder(find_model(args.model))
    stored = sum(path.stat().st_size for path in weight_files(folder))
    rows: list[dict[str, Any]] = []
    cores: list[BertCore] = []
    for number in range(args.rounds):
        cores.clear()
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        taken = seconds(lambda: cores.append(BertCore.from_pretrained(folder, dtype=args.dtype)))
        peak = mx.get_peak_memory() - before
        rows.append(
            {
                "what": "load, first" if number == 0 else "load, again",
                "seconds": taken,
                "file MB": stored / 1e6,
                "GB/s": stored / taken / 1e9,
                "peak MB": peak / 1e6,
                "peak over file": peak / stored,
            }
        )
    machine = roofline.measure(cores[0].config, count=2)
    root = Path(__file__).parent.parent
    for what, command in STARTS.items():
        start = [sys.executable, *command]
        best = min(rounds(lambda start=start: subprocess.run(start, cwd=root, capture_output=True, check=True), 3))
        rows.append({"what": what, "seconds": best})
    settings = {"model": label(args.model), "dtype": args.dtype or "as stored"}
    return report.build("load", settings, rows, roofline=asdict(machine))
