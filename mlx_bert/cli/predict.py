"""Apply a trained model: labels, values, entities, answers, choices, scores. Texts come as arguments, from a file, or
line by line from standard input.

The folder says what the model is. Questions have a context (--context, or a column), or choices (--choices, or a
column); a cross-encoder takes pairs (--pair-column).

examples:
  mlx-bert predict --model reviews-model "I would buy it again." "Never again."
  mlx-bert predict --model reviews-model --input unseen.csv --text-column review --output labelled.csv
  cat texts.txt | mlx-bert predict --model reviews-model --top-k 3 --format jsonl
  mlx-bert predict --model ner-model "Ada Lovelace lived in London."
  mlx-bert predict --model qa-model "Who lived in London?" --context "Ada Lovelace lived in London."
  mlx-bert predict --model reranker --input pairs.jsonl"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from mlx_bert.cli.data_options import SOURCES, add_data_arguments, read_rows_of
from mlx_bert.cli.head_data import KIND_OF_HEAD
from mlx_bert.cli.model_kind import (
    CROSS_ENCODER,
    EMBEDDING,
    FEW_SHOT,
    MASKED_LM,
    MULTI_TASK,
    add_model_arguments,
    find_model,
)

FORMATS = ("text", "jsonl", "csv")
Rows = list[dict[str, Any]]


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


def main(args: argparse.Namespace) -> int:
    """Predict, write and return the exit code."""
    output_format = _format(args)
    for name, value in (("--batch-size", args.batch_size), ("top_k", args.top_k)):
        if value < 1:
            raise ValueError(f"[predict] expected {name} of at least 1 but got {value}.")
    if args.texts and args.input:
        raise ValueError("[predict] expected texts or --input but got both. Give one of them.")
    if args.pair_column and not (args.input and is_data(args.input)):
        raise ValueError("[predict] expected --input with a .csv, .tsv or .jsonl file with --pair-column. Give one.")
    model = find_model(args.model, args.task)
    predict = {
        "head": _by_head,
        MULTI_TASK: _by_tasks,
        CROSS_ENCODER: _by_cross_encoder,
        MASKED_LM: _by_masked_lm,
        EMBEDDING: _by_embedding,
        FEW_SHOT: _by_few_shot,
    }[model.task]
    rows = predict(model.folder, args)
    if args.output:
        from mlx_bert.checkpoint import new_file

        with new_file(Path(args.output)) as file:
            write_rows(rows, file, output_format)
        print(f"{len(rows):,} predictions in {args.output}")
    else:
        write_rows(rows, sys.stdout, output_format)
    return 0


def _by_head(folder: str, args: argparse.Namespace) -> Rows:
    """Rows of a model with one head."""
    from mlx_bert.inference.predict import TextPredictor

    predictor = TextPredictor.from_pretrained(folder)
    kind = KIND_OF_HEAD.get(str(predictor.model.head.head_type), "text")
    second = {"question_answering": "context", "multiple_choice": "choices"}.get(kind, "text_pair")
    given = read_inputs(args, kind)
    pairs = [row[second] for row in given] if second in given[0] else None
    if second != "text_pair" and pairs is None:
        raise ValueError(
            f"[predict] expected --{second} with questions but got none. Give it, or --input with a column."
        )
    first = "question" if kind == "question_answering" else "text"
    texts = [row[first] for row in given]
    found = predictor.predict(texts, pairs, args.batch_size, args.max_length, args.top_k)
    shown = ("id", first, "text_pair")  # a context may be a book
    return [
        {**{name: row[name] for name in shown if name in row}, **result}
        for row, result in zip(given, found, strict=True)
    ]


def _by_tasks(folder: str, args: argparse.Namespace) -> Rows:
    """Rows of a model of several tasks: the label of each, and its probability."""
    from mlx_bert.inference.pipelines import MultiTask

    texts = [row["text"] for row in read_inputs(args, "text")]
    pipe = MultiTask.from_pretrained(folder, batch_size=args.batch_size)
    rows = []
    for text, tasks in zip(texts, pipe(texts, top_k=args.top_k, max_length=args.max_length), strict=True):
        row: dict[str, Any] = {"text": text}
        for task, ranked in tasks.items():
            row |= {task: ranked[0]["label"], f"{task}_confidence": ranked[0]["score"]}
            if args.top_k > 1:
                row[f"{task}_scores"] = {each["label"]: each["score"] for each in ranked}
        rows.append(row)
    return rows


def _by_cross_encoder(folder: str, args: argparse.Namespace) -> Rows:
    """Rows of pairs with their score, or their class."""
    from mlx_bert.inference.cross_encoder import CrossEncoder

    if not args.input:
        raise ValueError("[predict] expected --input with pairs for a cross-encoder but got none. Give a file.")
    model = CrossEncoder.from_pretrained(folder, max_length=args.max_length)
    given = read_rows_of(args.input, "labelled_pair", args, labelled=False)
    pairs = [(row["text"], row["text_pair"]) for row in given]
    scores = model.predict(pairs, args.batch_size, apply_softmax=model.num_labels > 1, show_progress_bar=False)
    rows = []
    names = [(model.model.id2label or {}).get(index, str(index)) for index in range(model.num_labels)]
    for (text, pair), own in zip(pairs, scores, strict=True):
        if model.num_labels == 1:
            result: dict[str, Any] = {"score": float(own)}
        else:
            result = _classes(own, names, args.top_k)
        rows.append({"text": text, "text_pair": pair, **result})
    return rows


def _by_masked_lm(folder: str, args: argparse.Namespace) -> Rows:
    """Rows of texts with their masks filled."""
    from mlx_bert.inference.pipelines import FillMask

    texts = [row["text"] for row in read_inputs(args, "text")]
    pipe = FillMask.from_pretrained(folder, batch_size=args.batch_size)
    rows = []
    for text in texts:
        found = pipe(text, top_k=args.top_k)
        places = found if isinstance(found[0], list) else [found]
        row: dict[str, Any] = {"text": text, "label": " ".join(place[0]["token_str"].strip() for place in places)}
        row["confidence"] = float(min(place[0]["score"] for place in places))
        if args.top_k > 1:
            row["candidates"] = [
                {each["token_str"].strip(): float(each["score"]) for each in place} for place in places
            ]
        rows.append(row)
    return rows


def _by_few_shot(folder: str, args: argparse.Namespace) -> Rows:
    """Rows of texts with their class."""
    from mlx_bert.training.few_shot import FewShotClassifier

    classifier = FewShotClassifier.from_pretrained(folder)
    if args.max_length:
        classifier.encoder.max_seq_length = args.max_length
    texts = [row["text"] for row in read_inputs(args, "text")]
    found = classifier.predict_proba(texts, args.batch_size)
    return [
        {"text": text, **_classes(own, classifier.labels, args.top_k)} for text, own in zip(texts, found, strict=True)
    ]


def _classes(probabilities: Any, names: Sequence[str], top_k: int) -> dict[str, Any]:
    """The best class, its probability, and with ``top_k`` above 1 those of the best classes."""
    scored = {names[int(i)]: float(probabilities[i]) for i in (-probabilities).argsort(kind="stable")[:top_k]}
    label = next(iter(scored))
    return {"label": label, "confidence": scored[label], **({"scores": scored} if top_k > 1 else {})}


def _by_embedding(folder: str, args: argparse.Namespace) -> Rows:
    raise ValueError(f"[predict] {folder} is an embedding model. Use: mlx-bert embed --model {folder}")


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


def read_inputs(args: argparse.Namespace, kind: str) -> Rows:
    """What to predict for: rows with the roles of their kind, without what is to be predicted."""
    texts = list(args.texts)
    if args.input and is_data(args.input):
        if (kind == "tagging" and not _has_tokens(args)) or kind in ("class", "multilabel", "number"):
            kind = "text"
        return read_rows_of(args.input, kind, args, labelled=False)
    if args.input:
        if not Path(args.input).is_file():
            raise FileNotFoundError(f"[predict] {args.input} does not exist. Give a file of texts.")
        texts = _lines(Path(args.input).read_text(encoding="utf-8-sig").splitlines())
    elif not texts:
        texts = _lines(line.rstrip("\n") for line in sys.stdin)
    if not texts:
        raise ValueError(
            "[predict] expected at least one text but got none. Give texts, --input FILE or standard input."
        )
    second: dict[str, Any] = {}
    if args.context is not None:
        second["context"] = args.context
    if args.choices is not None:
        second["choices"] = [choice.strip() for choice in args.choices.split(args.label_separator)]
    first = "question" if kind == "question_answering" else "text"
    return [{first: text, **second} for text in texts]


def _has_tokens(args: argparse.Namespace) -> bool:
    from mlx_bert.data.kinds import TOKENS
    from mlx_bert.data.sources import read_rows

    return bool({*TOKENS.columns} & {*read_rows(args.input).columns}) or "tokens" in (args.columns or {})


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
    """A row for people."""
    text = row.get("text", row.get("question", ""))
    text = f"{text} | {row['text_pair']}" if "text_pair" in row else text
    if "entities" in row:
        found = [f"{each['entity_group']} {each['score']:.4f} {each['word']}" for each in row["entities"]]
        return (", ".join(found) or "-") + f"  {text}"
    if "answer" in row:
        return f"{row['confidence']:.4f}  {row['answer'] or '(no answer)'}  {text}"
    if "choice" in row:
        return f"{row['confidence']:.4f}  {row['choice']}  {text}"
    tasks = [name.removesuffix("_confidence") for name in row if name.endswith("_confidence")]
    if tasks:
        return ", ".join(f"{task} {row[task]} {row[f'{task}_confidence']:.4f}" for task in tasks) + f"  {text}"
    if "score" in row:
        return f"{row['score']:10.4f}  {text}"
    if "candidates" in row:
        places = [", ".join(f"{word} {score:.4f}" for word, score in place.items()) for place in row["candidates"]]
        return " | ".join(places) + f"  {text}"
    if "value" in row:
        values = row["value"] if isinstance(row["value"], list) else [row["value"]]
        return "  ".join(f"{value:10.4f}" for value in values) + f"  {text}"
    if "scores" in row:
        return "  ".join(f"{name} {score:.4f}" for name, score in row["scores"].items()) + f"  {text}"
    if "labels" in row:
        named = zip(row["labels"], row["confidence"], strict=True)
        return (", ".join(f"{name} {score:.4f}" for name, score in named) or "-") + f"  {text}"
    return f"{row['label']:<16}{row['confidence']:.4f}  {text}"
