"""Predicting intents with the tags of words."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

Rows = list[dict[str, Any]]


def joint_predictor(folder: str, args: argparse.Namespace) -> Callable[[Rows], Rows]:
    """Texts to rows with their intent, its probability, their words and a tag for each."""
    from mlx_bert.joint import JointIntentNER

    if args.max_length or args.top_k > 1:
        raise ValueError("[predict] expected no --max-length and no --top-k for intents with tags. Leave them out.")
    model = JointIntentNER.from_pretrained(folder)

    def predict(rows: Rows) -> Rows:
        texts = [row["text"] for row in rows]
        return [
            {"text": text, "intent": row["intent"], "intent_confidence": row["confidence"], "words": row["words"],
             "tags": row["tags"]}
            for text, row in zip(texts, model.predict(texts, args.batch_size), strict=True)
        ]  # fmt: skip

    return predict
