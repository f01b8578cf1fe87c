"""Label texts with a fine-tuned model. Texts come as arguments, from a file, or line by line from standard input.

examples:
  mlx-bert predict --model reviews-model "I would buy it again." "Never again."
  mlx-bert predict --model reviews-model --input unseen.csv --text-column review --output labelled.csv
  cat texts.txt | mlx-bert predict --model reviews-model --top-k 3 --format jsonl"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from mlx_bert.cli.train import add_data_arguments

FORMATS = ("text", "jsonl", "csv")


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mlx-bert predict``."""
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to label")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="fine-tuned model, or a training run's output")
    parser.add_argument("--input", metavar="FILE", help="texts: .csv, .tsv, .jsonl, or any other file line by line")
    add_data_arguments(parser, label=False)
    parser.add_argument("--output", metavar="FILE", help="write here: .jsonl or .csv (default: standard output)")
    parser.add_argument("--format", choices=FORMATS, help="of the output (default: by --output's ending, else text)")
    parser.add_argument("--top-k", type=int, default=1, metavar="K", help="also give the K most probable classes")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="texts per batch (default: 32)")
    parser.add_argument("--max-length", type=int, metavar="TOKENS", help="truncate texts to this many tokens")


def main(args: argparse.Namespace) -> int:
    """Predict, write and return the exit code."""
    output_format = _format(args)
    texts, pairs = _texts(args)
    from mlx_bert.inference.predict import TextPredictor

    predictor = TextPredictor.from_pretrained(args.model)
    results = predictor.predict(texts, pairs, args.batch_size, args.max_length, args.top_k)
    rows = [
        {"text": text, **({"text_pair": pairs[number]} if pairs else {}), **result}
        for number, (text, result) in enumerate(zip(texts, results, strict=True))
    ]
    if args.output:
        from mlx_bert.checkpoint import new_file

        with new_file(Path(args.output)) as file:
            write_rows(rows, file, output_format)
        print(f"{len(rows):,} predictions in {args.output}")
    else:
        write_rows(rows, sys.stdout, output_format)
    return 0


def _format(args: argparse.Namespace) -> str:
    if args.format or not args.output:
        return args.format or "text"
    suffix = Path(args.output).suffix.lower().lstrip(".")
    if suffix not in FORMATS:
        raise ValueError(
            f"[predict] expected --output to end in .jsonl or .csv but got {args.output}. Or give --format."
        )
    return suffix


def _texts(args: argparse.Namespace) -> tuple[list[str], list[str] | None]:
    """The texts and, with --pair-column, the second texts."""
    if args.texts and args.input:
        raise ValueError("[predict] expected texts or --input but got both. Give one of them.")
    if args.input and Path(args.input).suffix.lower() in (".csv", ".tsv", ".jsonl", ".ndjson"):
        from mlx_bert.data.readers import read_examples

        examples = read_examples(args.input, args.text_column, None, args.pair_column)
        pairs = [example["text_pair"] for example in examples] if args.pair_column else None
        return [example["text"] for example in examples], pairs
    if args.pair_column:
        raise ValueError("[predict] expected --input with a .csv, .tsv or .jsonl file with --pair-column. Give one.")
    if args.input:
        if not Path(args.input).is_file():
            raise FileNotFoundError(f"[predict] {args.input} does not exist. Give a file of texts.")
        texts = _lines(Path(args.input).read_text(encoding="utf-8-sig").splitlines())
    else:
        texts = list(args.texts) or _lines(line.rstrip("\n") for line in sys.stdin)
    if not texts:
        raise ValueError(
            "[predict] expected at least one text but got none. Give texts, --input FILE or standard input."
        )
    return texts, None


def _lines(lines: Iterable[str]) -> list[str]:
    return [line for line in lines if line.strip()]


def write_rows(rows: list[dict[str, Any]], file: TextIO, output_format: str) -> None:
    """Write predictions: aligned columns for people, JSON Lines, or CSV (nested values as JSON)."""
    if output_format == "jsonl":
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif output_format == "csv":
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            cells = {k: json.dumps(v, ensure_ascii=False) if isinstance(v, (list, dict)) else v for k, v in row.items()}
            writer.writerow(cells)
    else:
        file.writelines(_line(row) + "\n" for row in rows)


def _line(row: dict[str, Any]) -> str:
    text = row["text"] if "text_pair" not in row else f"{row['text']} | {row['text_pair']}"
    if "value" in row:
        values = row["value"] if isinstance(row["value"], list) else [row["value"]]
        return "  ".join(f"{value:10.4f}" for value in values) + f"  {text}"
    if "scores" in row:
        return "  ".join(f"{name} {score:.4f}" for name, score in row["scores"].items()) + f"  {text}"
    if "labels" in row:
        named = zip(row["labels"], row["confidence"], strict=True)
        return (", ".join(f"{name} {score:.4f}" for name, score in named) or "-") + f"  {text}"
    return f"{row['label']:<16}{row['confidence']:.4f}  {text}"
