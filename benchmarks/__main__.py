"""``python -m benchmarks``: measure this machine."""

from __future__ import annotations

import argparse
import importlib
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
    "compare": ("compare", "against sentence-transformers, and with each optimisation off"),
    "train": ("train", "samples a second and memory of each way to train"),
    "accuracy": ("accuracy", "what trained models reach on real data sets that you give"),
}

EXAMPLES = """examples:
  python -m benchmarks
  python -m benchmarks throughput --model path/to/model --dtype float16
  python -m benchmarks compare --rounds 10 --save
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
        if given[0] == verb and not {"-h", "--help"} & set(given[:1]):
            import mlx_bert  # noqa: F401  (first: it enables the fast BLAS)

            module = importlib.import_module(f"benchmarks.{file}")
            module.build_parser(verb_parser)
            verb_parser.set_defaults(main=module.main)
    return parser.parse_args(given)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark and print its table.

    Returns:
        The exit code: 0, or 2 for an error that the user can mend.
    """
    args = parse(sys.argv[1:] if argv is None else argv)
    from benchmarks import report

    try:
        result = args.main(args)
        print(report.markdown(result))
        if args.save or args.output:
            print(f"\nKept in {report.save(result, args.output)}", file=sys.stderr)
    except (ValueError, OSError, ImportError) as error:
        print(f"benchmarks {args.verb}: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
