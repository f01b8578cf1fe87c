"""``python -m benchmarks``: measure this machine."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

# Verb -> its file and one line of help.
VERBS = {
    "throughput": ("throughput", "texts, tokens and operations a second; the default"),
    "latency": ("latency", "milliseconds for one text, from 8 to 512 tokens"),
    "memory": ("memory", "what stays allocated after thousands of calls"),
    "load": ("loading", "seconds and bytes until a model is ready"),
    "quality": ("quality", "every architecture and head against transformers: the largest difference"),
    "compare": ("compare", "against other engines, and with each optimisation off"),
    "train": ("train", "samples a second and memory of each way to train"),
    "all": ("full", "all of these but quality and accuracy, and one HTML report to keep or send"),
    "accuracy": ("accuracy", "what trained models reach on real data sets that you give"),
}

EXAMPLES = """examples:
  python -m benchmarks
  python -m benchmarks throughput --model path/to/model --dtype float16
  python -m benchmarks all --quick                        (writes mlx-bert-report.html)
  python -m benchmarks compare --peer mlx-embeddings sentence-transformers --rounds 10 --save
  python -m benchmarks throughput --architecture bert-base --plot --output runs/base.json
  python -m benchmarks latency --check runs/latency-before.json
  OPENBLAS_NUM_THREADS=1 python -m benchmarks latency"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; only the chosen benchmark is imported."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this machine: every round first measures what it can do at best.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="BENCHMARK")
    given = list(argv)
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help")):
        given.insert(0, "throughput")
    for verb, (file, help_line) in VERBS.items():
        verb_parser = verbs.add_parser(verb, help=help_line, description=f"Measure {help_line}.")
        verb_parser.add_argument("--model", metavar="MODEL", help="folder or hub id (default: the demo's MiniLM)")
        verb_parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="compute in this type")
        verb_parser.add_argument("--save", action="store_true", help="keep JSON and Markdown in benchmarks/results")
        verb_parser.add_argument("--output", type=Path, metavar="FILE", help="write JSON there, Markdown beside it")
        verb_parser.add_argument("--plot", action="store_true", help="with --save or --output: a PNG beside it too")
        verb_parser.add_argument(
            "--check", type=Path, metavar="FILE", help="say what got slower since this stored result; exit 1 if any did"
        )
        verb_parser.add_argument(
            "--tolerance", type=float, default=0.15, metavar="PART",
            help="with --check: how much worse a figure may be (default: 0.15)",
        )  # fmt: skip
        if given[0] == verb and not {"-h", "--help"} & set(given[:1]):
            import mlx_bert  # noqa: F401  (first: it enables the fast BLAS)

            module = importlib.import_module(f"benchmarks.{file}")
            module.build_parser(verb_parser)
            verb_parser.set_defaults(main=module.main)
    return parser.parse_args(given)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark and print its table.

    Returns:
        The exit code: 0; 1 if ``--check`` found something worse; 2 for an error that the user can mend.
    """
    args = parse(sys.argv[1:] if argv is None else argv)
    from benchmarks import check, plots, report

    try:
        if args.plot and not (args.save or args.output):
            raise ValueError("[benchmarks] expected --save or --output with --plot: the PNG goes beside the JSON.")
        stored = report.load(args.check) if args.check else None  # before an hour of measuring
        result = args.main(args)
        print(report.markdown(result))
        if args.save or args.output:
            path = report.save(result, args.output, plots.png(result) if args.plot else None)
            print(f"\nKept in {path}", file=sys.stderr)
        if stored is None:
            return 0
        worse, notes = check.check(result, stored, args.tolerance)
    except (ValueError, OSError, ImportError) as error:
        print(f"benchmarks {args.verb}: error: {error}", file=sys.stderr)
        return 2
    print("\n".join(["", *(f"note: {note}" for note in notes), *(f"worse: {line}" for line in worse)]))
    print(f"{len(worse)} of the figures are worse by more than {args.tolerance:.0%} than in {args.check}.")
    return 1 if worse else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that peers and temporary folders are cleared away
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
