"""Metrics of tokens, entities and answer spans.

Dimension key: B batch, L tokens, C tags.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from heads.loss_reduction import IGNORE_INDEX
from heads.metric_inputs import as_numpy, check_not_empty


def token_metrics(predictions: Any, labels: Any, label_names: Sequence[str] | None = None) -> dict[str, float]:
    """accuracy and f1_macro over the labelled tokens; with BIO tag names also entity precision, recall and f1.

    Args:
        predictions: (B, L), tag indices.
        labels: (B, L), tag indices, -100 where a token has no label.
        label_names: Name of each tag, such as ``["O", "B-PER", "I-PER"]``.
    """
    from sklearn.metrics import accuracy_score, f1_score

    predicted, labels = as_numpy(predictions), as_numpy(labels)
    if predicted.shape != labels.shape or labels.ndim != 2:
        raise ValueError(
            f"[token_metrics] expected predictions and labels (B, L) but got {predicted.shape} and {labels.shape}. "
            "Give one tag per token."
        )
    counted = labels != IGNORE_INDEX
    check_not_empty(labels[counted], "token_metrics")
    metrics = {
        "accuracy": float(accuracy_score(labels[counted], predicted[counted])),
        "f1_macro": float(f1_score(labels[counted], predicted[counted], average="macro", zero_division=0)),
    }
    if label_names is not None:

        def tags(ids: np.ndarray) -> list[list[str]]:
            return [[label_names[int(i)] for i in row[kept]] for row, kept in zip(ids, counted, strict=True)]

        metrics |= entity_metrics(tags(predicted), tags(labels))
    return metrics


def bio_entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Entities ``(type, first, last + 1)`` of a BIO sequence, by the rules of conlleval.

    An ``I-X`` after anything but ``B-X`` or ``I-X`` starts an entity, ``O`` is outside, a bare ``X`` is ``I-X``.
    """
    entities: list[tuple[str, int, int]] = []
    start, current = 0, ""
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-") if tag[:2] in ("B-", "I-") else ("O" if tag == "O" else "I", "", tag)
        goes_on = prefix == "I" and kind == current
        if current and not goes_on:
            entities.append((current, start, position))
            current = ""
        if prefix != "O" and not goes_on:
            start, current = position, kind
    return entities


def entity_metrics(predictions: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> dict[str, float]:
    """entity_precision, entity_recall and entity_f1 (micro): an entity is right if its type and both ends are.

    Args:
        predictions: BIO tags of each sentence.
        labels: Right BIO tags of each sentence, as many.

    Returns:
        NaN where there is nothing to divide by: no predicted, no labelled, or neither kind of entities.
    """
    if [len(row) for row in predictions] != [len(row) for row in labels]:
        raise ValueError("[entity_metrics] expected as many predicted tags as labels per sentence. Align them first.")
    found, right, hits = 0, 0, 0
    for row, reference in zip(predictions, labels, strict=True):
        guesses, truth = set(bio_entities(row)), set(bio_entities(reference))
        found, right, hits = found + len(guesses), right + len(truth), hits + len(guesses & truth)
    return {
        "entity_precision": hits / found if found else math.nan,
        "entity_recall": hits / right if right else math.nan,
        "entity_f1": 2 * hits / (found + right) if found + right else math.nan,
    }


def span_metrics(predictions: Any, labels: Any) -> dict[str, float]:
    """exact_match and f1 (overlap of token positions) of answer spans, both ends included.

    Args:
        predictions: (B, 2), first and last token; a span that ends before it starts is empty.
        labels: (B, 2); rows with a negative end have no label and do not count.
    """
    predicted, labels = as_numpy(predictions), as_numpy(labels)
    if predicted.shape != labels.shape or labels.ndim != 2 or labels.shape[1] != 2:
        raise ValueError(
            f"[span_metrics] expected predictions and labels (B, 2) but got {predicted.shape} and {labels.shape}. "
            "Give the first and last token of each span."
        )
    kept = (labels >= 0).all(axis=1)
    check_not_empty(labels[kept], "span_metrics")
    predicted, labels = predicted[kept].astype(np.int64), labels[kept].astype(np.int64)
    lengths = [np.maximum(span[:, 1] - span[:, 0] + 1, 0) for span in (predicted, labels)]
    overlap = np.minimum(predicted[:, 1], labels[:, 1]) - np.maximum(predicted[:, 0], labels[:, 0]) + 1
    overlap = np.clip(overlap, 0, np.minimum(*lengths))
    return {
        "exact_match": float((predicted == labels).all(axis=1).mean()),
        "f1": float((2 * overlap / np.maximum(lengths[0] + lengths[1], 1)).mean()),
    }
