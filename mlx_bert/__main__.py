"""The ``mlx-bert`` command. Each verb is a file in ``mlx_bert/cli``; nothing heavy loads before parsing."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from mlx_bert.cli.config_file import read_config

# Verb -> one line of help. The verb's module has build_parser(parser) and main(args).
VERBS = {
    "embed": "turn texts into embeddings",
    "search": "find texts by meaning, in an index on disk",
    "train": "fine-tune an encoder with a task head on labelled texts",
    "evaluate": "measure a fine-tuned model on labelled texts",
    "predict": "label texts with a fine-tuned model",
}

EXAMPLES = """examples:
  python -m convert sentence-transformers/all-MiniLM-L6-v2 --output minilm
  mlx-bert embed --model minilm "The sun is out." "It is a bright day."
  mlx-bert train --model minilm --train reviews.csv --output reviews-model
  mlx-bert evaluate --model reviews-model --data held-out.csv
  mlx-bert predict --model reviews-model "I would buy it again."

mlx-bert VERB --help explains a verb and all its options."""


class Parser(argparse.ArgumentParser):
    """One whose errors are a line, without the usage before it: that of ``train`` fills a screen."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message.rstrip('.')}. {self.prog} --help explains all options.\n")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; only the chosen verb's options are built."""
    parser = Parser(
        prog="mlx-bert",
        description="Run and fine-tune BERT-family encoders on Apple Silicon.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    given = list(sys.argv[1:] if argv is None else argv)
    for verb, help_line in VERBS.items():
        module = importlib.import_module(f"mlx_bert.cli.{verb}") if verb in given[:1] else None
        verb_parser = verbs.add_parser(
            verb,
            help=help_line,
            description=(module.__doc__ or "").strip() if module else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if module:
            module.build_parser(verb_parser)
            read_config(verb_parser, given[1:])
            verb_parser.set_defaults(main=module.main)
    return parser.parse_args(given)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb.

    Returns:
        The exit code: 0, 2 for an error that the user can mend, 130 after Ctrl-C.
    """
    args = parse(argv)
    try:
        return args.main(args) or 0
    except (ValueError, OSError, ImportError) as error:
        print(f"mlx-bert {args.verb}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mlx-bert {args.verb}: stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
