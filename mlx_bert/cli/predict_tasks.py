"""Predicting intents with the tags of words, and several tasks beside sentence embeddings."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

Rows = list[dict[str, Any]]


def joint_predictor(folder: str, args: argparse.Namespace) -> Callable[[Rows], Rows]:
    """Texts to rows with their intent, its probability, their words and a tag for each."""
    from mlx_bert.inference.precision import compute_dtype
    from mlx_bert.joint import JointIntentNER

    if args.top_k > 1:
        raise ValueError("[predict] expected no --top-k for intents with tags. Leave it out.")
    model = JointIntentNER.from_pretrained(folder, compute_dtype(args.dtype, folder))

    def predict(rows: Rows) -> Rows:
        texts = [row["text"] for row in rows]
        return [
            {"text": text, "intent": row["intent"], "intent_confidence": row["confidence"], "words": row["words"],
             "tags": row["tags"]}
            for text, row in zip(texts, model.predict(texts, args.batch_size, args.max_length), strict=True)
        ]  # fmt: skip

    return predict


def sentence_mtl_predictor(folder: str, args: argparse.Namespace) -> Callable[[Rows], Rows]:
    """Texts to rows with the label of each task, its probability, and of ``--top-k`` above 1 those of the best."""
    from mlx_bert.inference.precision import compute_dtype
    from mlx_bert.mtl import SentenceTransformerMTL
    from mlx_bert.mtl_data import MAX_LENGTH

    model = SentenceTransformerMTL.from_pretrained(folder, compute_dtype(args.dtype, folder))

    def predict(rows: Rows) -> Rows:
        texts = [row["text"] for row in rows]
        found = model.predict(texts, batch_size=args.batch_size, max_length=args.max_length or MAX_LENGTH)
        results: Rows = [{"text": text} for text in texts]
        for task, each in found.items():
            names = model.tasks[task]
            for place, row in enumerate(results):
                row |= {task: each["labels"][place], f"{task}_confidence": float(each["confidence"][place])}
                if args.top_k > 1:
                    best = (-each["probs"][place]).argsort(kind="stable")[: args.top_k]
                    row[f"{task}_scores"] = {names[index]: float(each["probs"][place][index]) for index in best}
        return results

    return predict
