"""What each head learns from: the kind of its examples, its labels, its windows, and how it is measured."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

BY_COLUMNS = "by_columns"  # what the columns of the data say
# What an example is for each head (a key of mlx_bert.data.kinds.KINDS).
KIND_OF_HEAD = {
    "multiclass_classification": "class",
    "binary_classification": "class",
    "text_classification": "class",
    "ordinal_regression": "class",
    "ensemble": "class",
    "hierarchical": "class",
    "time_series_classification": "class",
    "multilabel_classification": "multilabel",
    "regression": "number",
    "time_series_regression": "number",
    "token_classification": "tagging",
    "question_answering": "question_answering",
    "multiple_choice": "multiple_choice",
    "ranking": "ranking",
    "text_similarity": "scored_pair",
    "metric_learning": "class",
    "contrastive": BY_COLUMNS,
}
WINDOWED = ("tagging", "question_answering")
EMBEDDERS = ("contrastive", "metric_learning")  # classes say which texts belong together, the head does not name them
# Kinds of rows of several texts, each read by itself -> the roles of the texts.
SEVERAL_TEXTS = {
    "scored_pair": ("text", "text_pair"),
    "positive_pair": ("anchor", "positive"),
    "triplet": ("anchor", "positive", "negative"),
}
METRICS = {"question_answering": "f1", "multiple_choice": "accuracy"}


class Measured(NamedTuple):
    """Examples that a model is measured on.

    Attributes:
        examples: with ``labels``, as the collator takes them.
        objective: the loss and the metrics.
        rows: what the examples were made of.
    """

    examples: list[dict[str, Any]]
    objective: Any
    rows: Sequence[dict[str, Any]]


def add_window_arguments(group: Any) -> None:
    """The options of heads that read long texts in windows."""
    group.add_argument(
        "--stride", type=int, metavar="TOKENS",
        help="tokens that windows over a long text share (default: 128 for questions, else a quarter of a window)",
    )  # fmt: skip
    group.add_argument(
        "--max-answer-length", type=int, default=30, metavar="TOKENS", help="tokens of an answer at most (default: 30)"
    )
    group.add_argument(
        "--null-threshold", type=float, metavar="SCORE",
        help="how much better than the best answer 'no answer' must score (default: 0 if some questions have none)",
    )  # fmt: skip


def kind_of_head(head: str, source: str, args: argparse.Namespace) -> str:
    """What an example is for a head; for one that takes several kinds, what the columns of the data say."""
    from mlx_bert.cli.embedding_data import texts_kind
    from mlx_bert.data.kinds import FIRST, LABEL, SECOND, TEXT
    from mlx_bert.data.sources import read_rows

    if KIND_OF_HEAD[head] != BY_COLUMNS:
        return KIND_OF_HEAD[head]
    present = {*read_rows(source).columns, *(args.columns or {})}
    labelled = args.label_column or present & {*LABEL.columns}
    if labelled and present & {*TEXT.columns, *FIRST.columns, args.text_column} and not present & {*SECOND.columns}:
        return "class" if not args.pair_column else "scored_pair"
    return texts_kind(source, args)


def windows_of(
    kind: str, rows: Sequence[dict], labels: Any, tokenizer: Any, args: argparse.Namespace, max_length: int | None,
    every_token: bool = False, keep: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Windows over the texts of rows, with what is to be learnt of each."""
    from mlx_bert.data.alignment import tag_windows
    from mlx_bert.data.questions import question_windows

    if kind == "question_answering":
        return question_windows(rows, tokenizer, max_length, args.stride, keep)
    length = max_length or tokenizer.max_length
    stride = args.stride if args.stride is not None else (length or 0) // 4
    return tag_windows(rows, tokenizer, labels.names, max_length, stride, every_token)


def training_examples(
    kind: str, rows: Sequence[dict], labels: Any, tokenizer: Any, args: argparse.Namespace, max_length: int | None,
    every_token: bool, name: str,
) -> list[dict[str, Any]]:  # fmt: skip
    """Examples to train on, with ``labels``."""
    from mlx_bert.data.labels import encode_labels

    if kind in WINDOWED:
        return windows_of(kind, rows, labels, tokenizer, args, max_length, every_token)
    if kind in ("class", "multilabel"):
        return encode_labels(rows, labels, kind == "multilabel", name)
    if kind == "ranking":
        return [{"line": row["line"], "text": row["query"], "choices": row["documents"], "labels": row["labels"]}
                for row in rows]  # fmt: skip
    if kind in SEVERAL_TEXTS:
        return several_texts(rows, kind, tokenizer, max_length, name)
    return [{**row, "labels": row["label"]} for row in rows]


def several_texts(
    rows: Sequence[dict], kind: str, tokenizer: Any, max_length: int | None, name: str
) -> list[dict[str, Any]]:
    """Examples of several texts, each a row of ids of its own; ``labels`` is the score, or 0 where there is none.

    Raises:
        ValueError: rows with different numbers of negatives.
    """
    import numpy as np

    from mlx_bert.data.sources import Problems

    texts, problems = [], Problems(name)
    for row in rows:
        parts = [row[role] for role in SEVERAL_TEXTS[kind]]
        texts.append([text for part in parts for text in ([part] if isinstance(part, str) else part)])
        if len(texts[-1]) != len(texts[0]):
            problems.add(row["line"], f"expected {len(texts[0])} texts as in the first row but got {len(texts[-1])}")
    problems.raise_if_any()
    encodings = iter(tokenizer.encode([text for each in texts for text in each], max_length=max_length))
    examples = []
    for row, each in zip(rows, texts, strict=True):
        own = [next(encodings) for _ in each]
        ids, types = ([np.array(getattr(e, field), dtype=np.int32) for e in own] for field in ("ids", "type_ids"))
        label = float(row["score"]) if "score" in row else 0
        examples.append({"line": row["line"], "input_ids": ids, "token_type_ids": types, "labels": label})
    return examples


def measured_examples(
    kind: str, rows: Sequence[dict], labels: Any, tokenizer: Any, args: argparse.Namespace, max_length: int | None,
    name: str,
) -> Measured:  # fmt: skip
    """Examples to measure a model on, and how."""
    from mlx_bert.training.long_texts import QuestionObjective, TaggingObjective, numbered
    from mlx_bert.training.objective import HeadObjective

    if kind not in WINDOWED:
        examples = training_examples(kind, rows, labels, tokenizer, args, max_length, False, name)
        return Measured(examples, HeadObjective(), rows)
    windows = numbered(windows_of(kind, rows, labels, tokenizer, args, max_length, keep=True))
    if kind == "tagging":
        return Measured(windows, TaggingObjective(windows, rows, labels.names), rows)
    threshold = args.null_threshold
    if threshold is None and any(not row["answers"]["text"] for row in rows):
        threshold = 0.0
    return Measured(windows, QuestionObjective(windows, args.max_answer_length, threshold), rows)


def collator_of(kind: str, model: Any, tokenizer: Any, exact: bool) -> Any:
    """What makes batches of the examples of a kind."""
    from mlx_bert.training.feed import default_collator
    from mlx_bert.training.long_texts import WindowCollator

    if kind == "ranking":
        from mlx_bert.data.collate import ListCollator

        bound = model.bert.config.max_tokens
        return ListCollator(tokenizer.pad_id, tokenizer.padding_side, max_length=bound, exact=exact)
    if kind not in WINDOWED:
        return default_collator(model, tokenizer, exact)
    return WindowCollator(
        tokenizer.pad_id, tokenizer.padding_side, max_length=model.bert.config.max_tokens, exact=exact
    )


def label_names(kind: str, rows: Any) -> list[str] | None:
    """The names of the classes that examples have; None for kinds without names.

    The order is that of the data set, where it has one; else whole numbers by size, other names by the alphabet, and
    ``O`` first among tags.
    """
    from mlx_bert.data.labels import LabelMap

    role = {"class": "label", "multilabel": "label", "tagging": "tags"}.get(kind)
    if role is None:
        return None
    if names := rows.classes.get(role):
        return list(names)
    names = list(LabelMap.from_labels([row[role] for row in rows]).names)
    return sorted(names, key=lambda name: name != "O") if kind == "tagging" else names
