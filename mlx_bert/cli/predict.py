"""Apply a trained model: labels, values, entities, answers, choices, scores. Texts come as arguments, from a file, or
line by line from standard input.

The folder says what the model is. Questions have a context (--context, or a column), or choices (--choices, or a
column); a cross-encoder takes pairs (--pair-column). Inputs of any size are read and written in bounded memory, all
but .json files and documents to rank; an output file appears only when it is complete.

examples:
  mlx-bert predict --model reviews-model "I would buy it again." "Never again."
  mlx-bert predict --model reviews-model --input unseen.csv --text-column review --output labelled.csv
  cat texts.txt | mlx-bert predict --model reviews-model --top-k 3 --format jsonl
  mlx-bert predict --model ner-model "Ada Lovelace lived in London."
  mlx-bert predict --model qa-model "Who lived in London?" --context "Ada Lovelace lived in London."
  mlx-bert predict --model reranker --input pairs.jsonl"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mlx_bert.cli.data_options import SOURCES, add_data_arguments, read_rows_of, stream_rows_of
from mlx_bert.cli.model_kind import CROSS_ENCODER, add_model_arguments, find_model
from mlx_bert.cli.prediction_rows import FORMATS, Row, write_rows
from mlx_bert.cli.predictors import Predictor, load_predictor

WINDOW = 4096  # inputs read, sorted and batched at a time


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mlx-bert predict``."""
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts, or questions")
    add_model_arguments(parser)
    parser.add_argument("--input", metavar="DATA", help=f"texts: {SOURCES}; any other file is read line by line")
    add_data_arguments(parser, label=False)
    parser.add_argument("--context", metavar="TEXT", help="where the answers to the questions stand")
    parser.add_argument("--choices", metavar="TEXTS", help="what to choose from, joined by --label-separator")
    parser.add_argument("--output", metavar="FILE", help="write here: .jsonl or .csv (default: standard output)")
    parser.add_argument("--format", choices=FORMATS, help="of the output (default: by --output's ending, else text)")
    parser.add_argument("--top-k", type=int, default=1, metavar="K", help="also give the K most probable classes")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="texts per batch (default: 32)")
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="TOKENS",
        help="truncate texts to this many tokens, or read windows of so many",
    )
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16", "stored"),
                        help="compute in this type, or as stored (default: float16 on a GPU)")  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Predict, write and return the exit code."""
    output_format = _format(args)
    for name, value in (("--batch-size", args.batch_size), ("top_k", args.top_k), ("--max-length", args.max_length)):
        if value is not None and value < 1:
            raise ValueError(f"[predict] expected {name} of at least 1 but got {value}.")
    if args.texts and args.input:
        raise ValueError("[predict] expected texts or --input but got both. Give one of them.")
    if args.pair_column and not (args.input and is_data(args.input)):
        raise ValueError("[predict] expected --input with a .csv, .tsv or .jsonl file with --pair-column. Give one.")
    model = find_model(args.model, args.task)
    windows = predicted(model.folder, model.task, args)
    if not args.output:
        write_rows(windows, sys.stdout, output_format)
        return 0
    from mlx_bert.checkpoint import new_file

    with new_file(Path(args.output)) as file:
        count = write_rows(windows, file, output_format)
    print(f"{count:,} predictions in {args.output}")
    return 0


def predicted(folder: str, task: str, args: argparse.Namespace) -> Iterator[list[Row]]:
    """What a model predicts of the inputs, a window at a time."""
    predictor = load_predictor(folder, task, args)
    _check_options(args, predictor, task)
    return map(predictor.predict, read_windows(args, predictor.kind))


def _check_options(args: argparse.Namespace, predictor: Predictor, task: str) -> None:
    """Refuse what would be passed over."""
    reads = {"context": "question_answering", "choices": "multiple_choice"}
    for option, kind in reads.items():
        if getattr(args, option) is None:
            continue
        if predictor.kind != kind:
            raise ValueError(f"[predict] expected no --{option} for a model that reads none. Leave it out.")
        if args.input and is_data(args.input):
            raise ValueError(
                f"[predict] expected no --{option} with --input of columns, but got both. Make it a column of the data."
            )
    if args.pair_column and not predictor.pairs:
        raise ValueError("[predict] expected no --pair-column for a model that reads no pairs. Leave it out.")
    if args.top_k > 1 and not predictor.ranks:
        what = "a cross-encoder of one class" if task == CROSS_ENCODER else "a model without classes"
        raise ValueError(f"[predict] expected --top-k of 1 for {what} but got {args.top_k}. Leave it out.")


def _format(args: argparse.Namespace) -> str:
    if args.format or not args.output:
        return args.format or "text"
    suffix = Path(args.output).suffix.lower().lstrip(".")
    if suffix not in FORMATS:
        raise ValueError(
            f"[predict] expected --output to end in .jsonl or .csv but got {args.output}. Or give --format."
        )
    return suffix


def is_data(source: str) -> bool:
    """Whether a source has columns; other files are read line by line."""
    from mlx_bert.data.sources import FILES, HUB, split_of

    return Path(source).suffix.lower() in FILES or source.startswith(HUB) or Path(split_of(source)[0]).is_dir()


def read_windows(args: argparse.Namespace, kind: str) -> Iterator[list[dict[str, Any]]]:
    """What to predict for, ``WINDOW`` at a time: the roles of a kind, without what is to be predicted.

    Raises:
        FileNotFoundError: no such file.
        ValueError: bad rows, or no texts.
    """
    if args.input and is_data(args.input):
        if (kind == "tagging" and not _has_tokens(args)) or kind in ("class", "multilabel", "number"):
            kind = "text"
        if kind == "ranking":  # the documents of a query may be anywhere in the source
            return iter([read_rows_of(args.input, kind, args, labelled=False)])
        return stream_rows_of(args.input, kind, args, WINDOW)
    if args.input and not Path(args.input).is_file():
        raise FileNotFoundError(f"[predict] {args.input} does not exist. Give a file of texts.")
    second: dict[str, Any] = {}
    if args.context is not None:
        second["context"] = args.context
    if args.choices is not None:
        second["choices"] = [choice.strip() for choice in args.choices.split(args.label_separator)]
    first = "question" if kind == "question_answering" else "text"
    rows = ({first: text, **second} for text in args.texts or _lines(args.input))
    some = next(rows, None)
    if some is None:
        raise ValueError(
            "[predict] expected at least one text but got none. Give texts, --input FILE or standard input."
        )
    rows = chain([some], rows)
    return iter(lambda: list(islice(rows, WINDOW)), [])


def _lines(path: str | None) -> Iterator[str]:
    """The lines of a file, or of standard input; those without text are passed over."""
    from mlx_bert.data.sources import text_lines

    lines: Iterable[str] = sys.stdin if path is None else text_lines(Path(path))
    return (line.rstrip("\r\n") for line in lines if line.strip())


def _has_tokens(args: argparse.Namespace) -> bool:
    from mlx_bert.data.kinds import TOKENS
    from mlx_bert.data.sources import scan_rows

    return bool({*TOKENS.columns} & {*scan_rows(args.input).columns()}) or "tokens" in (args.columns or {})
