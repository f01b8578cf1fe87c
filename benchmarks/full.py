"""All benchmarks of inference and training one after the other, each in a process of its own, and one HTML report."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import html, report

# Benchmark -> the options of a full and of a quick run.
VERBS: dict[str, tuple[list[str], list[str]]] = {
    "latency": ([], ["--rounds", "2", "--calls", "3"]),
    "throughput": ([], ["--rounds", "2", "--texts", "64"]),
    "memory": (["--calls", "2000", "--converting", "0"], ["--calls", "50", "--converting", "0"]),
    "load": ([], ["--rounds", "2"]),
    "train": ([], ["--rounds", "1"]),
    "compare": ([], ["--rounds", "2", "--texts", "32"]),
}


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--quick", action="store_true", help="minutes instead of a quarter of an hour; rougher")
    parser.add_argument("--skip", nargs="+", choices=VERBS, default=[], help="leave these out")
    parser.add_argument(
        "--html", type=Path, default=Path("mlx-bert-report.html"), metavar="FILE",
        help="the report (default: mlx-bert-report.html)",
    )  # fmt: skip


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Run all, write the report, and return a table of what ran.

    Raises:
        ValueError: every benchmark failed.
    """
    chosen = [verb for verb in VERBS if verb not in args.skip]
    results, failures, rows = [], {}, []
    with tempfile.TemporaryDirectory() as folder:
        for number, verb in enumerate(chosen, 1):
            print(f"[{number}/{len(chosen)}] {verb}", file=sys.stderr, flush=True)
            stored = Path(folder) / f"{verb}.json"
            command = [sys.executable, "-m", "benchmarks", verb, "--output", str(stored), *VERBS[verb][args.quick]]
            command += ["--model", args.model] if args.model else []
            command += ["--dtype", args.dtype] if args.dtype else []
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                results.append(report.load(stored))
                outcome = f"{len(results[-1]['rows'])} rows"
            else:
                outcome = failures[verb] = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
            rows.append({"what": verb, "outcome": outcome})
    if not results:
        raise ValueError(f"[benchmarks] nothing could be measured: {next(iter(failures.values()), 'all was skipped')}")
    report.write_text(args.html, html.page(results, failures))
    note = f"The report is {args.html}: one file, to open in a browser or attach to an issue."
    return report.build("all", {"model": results[0]["settings"]["model"]}, rows, note=note, results=results)
