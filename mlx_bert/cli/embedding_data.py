"""What embedding models and cross-encoders learn from and are measured on, by the columns that there are."""

from __future__ import annotations

import argparse
from typing import Any

from mlx_bert.cli.config_file import Assignments, assignment
from mlx_bert.cli.data_options import read_rows_of

# Loss -> its class in mlx_bert.training.sentence_losses, and the kind of rows; None for what the columns say.
EMBEDDING_LOSSES: dict[str, tuple[str, str | None]] = {
    "multiple_negatives": ("MultipleNegativesRanking", None),
    "cosent": ("CoSENT", "scored_pair"),
    "angle": ("AnglE", "scored_pair"),
    "cosine": ("CosineSimilarity", "scored_pair"),
    "contrastive": ("Contrastive", "scored_pair"),
    "online_contrastive": ("OnlineContrastive", "scored_pair"),
    "triplet": ("Triplet", "triplet"),
    "batch_hard_triplet": ("BatchHardTriplet", "class"),
    "margin_mse": ("MarginMSE", "distillation"),
    "distill_kl": ("DistillKL", "distillation"),
    "embedding_mse": ("EmbeddingMSE", "teacher"),
}


def add_loss_arguments(group: Any) -> None:
    """The options of losses over texts."""
    group.add_argument(
        "--loss", metavar="LOSS",
        help=f"embedding: {', '.join(EMBEDDING_LOSSES)} (default: multiple_negatives, or cosent for pairs with a "
        "score); cross_encoder: bce, ce, mse, lambda, listnet, listmle, ranknet, margin_mse (default: bce, or ce for "
        "named classes)",
    )  # fmt: skip
    group.add_argument(
        "--teacher", metavar="MODEL",
        help="embedding: learn this model's embeddings of the first text, for the second too if there is one, such as "
        "its translation (--loss embedding_mse); without it they stand in the column label",
    )  # fmt: skip
    group.add_argument(
        "--loss-option", dest="loss_options", action=Assignments, type=assignment, metavar="NAME=VALUE",
        help="an option of the loss, such as scale=20; may be given several times",
    )  # fmt: skip
    add_score_arguments(group)


def add_score_arguments(group: Any) -> None:
    """The option of data with scores."""
    group.add_argument(
        "--largest-score", type=float, default=1.0, metavar="SCORE",
        help="divide scores by this, for example 5 for those of the STS benchmark (default: 1)",
    )  # fmt: skip


def texts_kind(source: str, args: argparse.Namespace) -> str:
    """The kind of rows that a source has, from its columns: ranking, triplet, scored_pair or positive_pair."""
    from mlx_bert.data.sources import read_rows

    present = {*read_rows(source).columns, *(args.columns or {})}
    if present & {"documents", "docs", "passages"} or {"query", "document"} <= present:
        return "ranking"
    if present & {"negative", "neg"}:
        return "triplet"
    return "scored_pair" if present & {"score", "label"} or args.label_column else "positive_pair"


def read_texts(source: str, kind: str | None, args: argparse.Namespace) -> Any:
    """The rows of a source, scores divided by the largest.

    Args:
        source: the data.
        kind: of the rows; None for what the columns say.
        args: with the options of :func:`add_score_arguments`.
    """
    rows = read_rows_of(source, kind or texts_kind(source, args), args)
    if args.largest_score <= 0:
        raise ValueError(f"[data] expected --largest-score above 0 but got {args.largest_score}.")
    for row in rows:
        if "score" in row:
            row["score"] /= args.largest_score
    return rows


def evaluator_of(rows: Any, batch_size: int) -> Any:
    """Measures an embedding model on rows.

    Pairs with a score: the correlation with the cosine. Triplets: how often the positive is nearer. Documents of a
    query: their order. Pairs alone: whether each first text finds its second among all of them.
    """
    from mlx_bert.inference import evaluators

    first = rows[0]
    if "score" in first:
        columns = ([row[name] for row in rows] for name in ("text", "text_pair", "score"))
        return evaluators.EmbeddingSimilarityEvaluator(*columns, similarities=("cosine",), batch_size=batch_size)
    if "documents" in first:
        samples = []
        for row in rows:
            parts: dict[bool, list[str]] = {True: [], False: []}
            for document, label in zip(row["documents"], row["labels"], strict=True):
                parts[label > 0].append(document)
            samples.append({"query": row["query"], "positive": parts[True], "negative": parts[False]})
        return evaluators.RerankingEvaluator(samples, batch_size=batch_size)
    if "negative" in first:
        flat = [
            (row["anchor"], row["positive"], negative)
            for row in rows
            for negative in ([row["negative"]] if isinstance(row["negative"], str) else row["negative"])
        ]
        return evaluators.TripletEvaluator(*map(list, zip(*flat, strict=True)), similarities=("cosine",),
                                           batch_size=batch_size)  # fmt: skip
    if "positive" not in first:
        raise ValueError(
            "[evaluate] expected pairs with a score, triplets, pairs, or queries with documents to measure embeddings "
            f"on but got rows of {', '.join(key for key in first if key != 'line')}. Give --eval data of these kinds, "
            "or --eval-size 0."
        )
    corpus = {text: number for number, text in enumerate(dict.fromkeys(row["positive"] for row in rows))}
    queries: dict[str, set[str]] = {}
    for row in rows:
        queries.setdefault(row["anchor"], set()).add(str(corpus[row["positive"]]))
    ids = {str(number): text for number, text in enumerate(queries)}
    return evaluators.InformationRetrievalEvaluator(
        ids,
        {str(number): text for text, number in corpus.items()},
        {number: queries[text] for number, text in ids.items()},
        batch_size=batch_size,
    )


def held_out_rows(rows: Any, args: argparse.Namespace, kind: str | None, seed: int) -> tuple[Any, Any]:
    """Training and evaluation rows: --eval, or a part of --train."""
    from mlx_bert.data.splits import split_examples

    if args.eval:
        return rows, read_texts(args.eval, kind, args)
    split = split_examples([None] * len(rows), args.eval_size, 0.0, seed=seed)
    return [rows[place] for place in split.train], [rows[place] for place in split.validation]
