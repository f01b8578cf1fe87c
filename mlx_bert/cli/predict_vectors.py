"""Predicting with heads that compare texts: documents in order, similarities of pairs, embeddings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

from mlx_bert.cli.prediction_rows import Row


def vector_predict(folder: str, args: argparse.Namespace) -> tuple[str, Any]:
    """A model whose head compares texts: the kind of its inputs, and the function from them to rows.

    Raises:
        ValueError: a head that ranks without ``--input``.
    """
    from mlx_bert.inference.precision import compute_dtype
    from mlx_bert.model import BertWithHead
    from mlx_bert.tokenizer import Tokenizer

    model = BertWithHead.from_pretrained(folder, compute_dtype(args.dtype, folder)).eval()
    tokenizer = Tokenizer.from_pretrained(folder)
    if str(model.head.head_type) == "ranking":
        if not args.input:
            raise ValueError("[predict] expected --input with queries and documents to rank but got none. Give a file.")
        return "ranking", partial(_ranked, model, tokenizer, args)
    if args.pair_column or (str(model.head.head_type) == "text_similarity" and _has_pairs(args)):
        return "scored_pair", partial(_similar, model, tokenizer, args)
    return "text", partial(_embedded, model, tokenizer, args)


def _has_pairs(args: argparse.Namespace) -> bool:
    """Whether the input has a column of second texts, as the data that the head learnt from."""
    from mlx_bert.cli.predict import is_data
    from mlx_bert.data.kinds import SECOND
    from mlx_bert.data.sources import scan_rows

    if not args.input or not is_data(args.input):
        return False
    return bool({*SECOND.columns} & {*scan_rows(args.input).columns()}) or "text_pair" in (args.columns or {})


def _embedded(model: Any, tokenizer: Any, args: argparse.Namespace, rows: list[Row]) -> list[Row]:
    """Texts with their vectors."""
    vectors = _head_outputs(model, tokenizer, [row["text"] for row in rows], "embeddings", args)
    return [{"text": row["text"], "embedding": vector.tolist()} for row, vector in zip(rows, vectors, strict=True)]


def _ranked(model: Any, tokenizer: Any, args: argparse.Namespace, rows: list[Row]) -> list[Row]:
    """Queries with their documents, the best first, and the score of each."""
    pairs = [(row["query"], document) for row in rows for document in row["documents"]]
    texts, documents = zip(*pairs, strict=True)
    scores = iter(_head_outputs(model, tokenizer, texts, "scores", args, documents))
    ranked = []
    for row in rows:
        scored = sorted(((float(next(scores)), text) for text in row["documents"]), key=lambda each: -each[0])
        ranked.append(
            {
                "query": row["query"],
                "documents": [text for _, text in scored],
                "document_scores": [score for score, _ in scored],
            }
        )
    return ranked


def _similar(model: Any, tokenizer: Any, args: argparse.Namespace, rows: list[Row]) -> list[Row]:
    """Pairs with the similarity that the head gives them."""
    import mlx.core as mx
    import numpy as np

    sides = [
        np.stack(_head_outputs(model, tokenizer, [row[role] for row in rows], "embeddings", args))
        for role in ("text", "text_pair")
    ]
    if str(model.head.head_type) == "text_similarity":
        scores = np.array(model.head._pair(*map(mx.array, sides))["similarity_score"])
    else:
        first, second = (side / np.linalg.norm(side, axis=-1, keepdims=True).clip(1e-12) for side in sides)
        scores = (first * second).sum(-1)
    return [
        {"text": row["text"], "text_pair": row["text_pair"], "score": float(score)}
        for row, score in zip(rows, scores, strict=True)
    ]


def _head_outputs(
    model: Any, tokenizer: Any, texts: Sequence[str], name: str, args: argparse.Namespace,
    pairs: Sequence[str] | None = None,
) -> list[Any]:  # fmt: skip
    """One output of the head for each text, or each pair."""
    import mlx.core as mx
    import numpy as np

    from mlx_bert.inference.batching import run_batches

    found: list[Any] = [None] * len(texts)

    def forward(batch: Any, _: Any) -> Any:
        return model(*batch)[name].astype(mx.float32)

    for places, output in run_batches(
        texts, tokenizer, forward, model=model, pairs=pairs, batch_size=args.batch_size, max_length=args.max_length
    ):
        for place, row in zip(places, np.array(output), strict=True):
            found[place] = row
    return found
