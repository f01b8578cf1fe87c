"""Triplets (anchor, positive, negative) of texts to learn embeddings from, and splits that keep anchors apart."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

PARTS = (0.7, 0.2, 0.1)


class Triplet(NamedTuple):
    """A text, one that is like it, and one that is not."""

    anchor: str
    positive: str
    negative: str


def scored_triplets(
    pairs: Iterable[Mapping[str, Any]],
    positive_from: float = 0.6,
    negative_to: float = 0.5,
    per_positive: int = 3,
    largest: float = 1.0,
    seed: int = 42,
) -> list[Triplet]:
    """Triplets from pairs with a similarity score, such as those of the STS benchmark, in both directions.

    An anchor's positives score ``positive_from`` or more, its negatives ``negative_to`` or less. Where there are not
    ``per_positive`` negatives, other texts are drawn, but never the anchor or a text that any pair scores above
    ``negative_to`` with it.

    Args:
        pairs: ``text_a``, ``text_b`` and ``score``.
        positive_from, negative_to: parts of ``largest``.
        per_positive: triplets of each positive.
        largest: the greatest score that there can be: 5 in the STS benchmark's files.
        seed: of the texts that are drawn.

    Returns:
        Each triplet once, sorted.

    Raises:
        ValueError: a score outside [0, ``largest``].
    """
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    for number, pair in enumerate(pairs):
        first, second, score = pair["text_a"], pair["text_b"], float(pair["score"]) / largest
        if not 0 <= score <= 1:
            raise ValueError(
                f"[triplets] expected scores from 0 to {largest} but got {pair['score']} in pair {number}."
            )
        if first != second:
            for one, other in ((first, second), (second, first)):
                scores[one][other] = max(score, scores[one].get(other, 0.0))
    texts = sorted(scores)
    rng = random.Random(seed)
    found = set()
    for anchor in texts:
        near = {other for other, score in scores[anchor].items() if score > negative_to} | {anchor}
        negatives = sorted(set(scores[anchor]) - near)
        for positive in sorted(other for other, score in scores[anchor].items() if score >= positive_from):
            chosen = rng.sample(negatives, min(per_positive, len(negatives)))
            left = len(texts) - len(near) - len(negatives)  # texts that no pair has together with the anchor
            while len(chosen) < min(per_positive, len(negatives) + left):
                other = rng.choice(texts)
                if other not in near and other not in chosen:
                    chosen.append(other)
            found |= {Triplet(anchor, positive, negative) for negative in chosen}
    return sorted(found)


def query_triplets(rows: Iterable[Mapping[str, Any]]) -> list[Triplet]:
    """Every combination of a query with one of its positives and one of its negatives.

    Args:
        rows: ``query``, ``pos`` and ``neg``, the latter two a text or a list of texts.

    Returns:
        Each triplet once, sorted.
    """

    def texts(value: str | Sequence[str]) -> Sequence[str]:
        return [value] if isinstance(value, str) else value

    return sorted(
        {
            Triplet(row["query"], positive, negative)
            for row in rows
            for positive in texts(row["pos"])
            for negative in texts(row["neg"])
        }
    )


def split_by_anchor(
    triplets: Iterable[Triplet], parts: Sequence[float] = PARTS, seed: int = 42
) -> tuple[list[Triplet], ...]:
    """Cut triplets into parts so that no anchor is in two of them.

    Args:
        triplets: in any order: it does not matter.
        parts: shares of the anchors, which sum to 1: training, validation, test.
        seed: the same seed gives the same split.

    Raises:
        ValueError: shares that do not sum to 1, or fewer anchors than parts.
    """
    if abs(sum(parts) - 1) > 1e-6 or min(parts) < 0:
        raise ValueError(f"[triplets] expected parts that sum to 1 but got {tuple(parts)}.")
    by_anchor: dict[str, list[Triplet]] = defaultdict(list)
    for triplet in sorted(set(triplets)):
        by_anchor[triplet.anchor].append(triplet)
    anchors = sorted(by_anchor)
    if len(anchors) < len(parts):
        raise ValueError(f"[triplets] expected at least {len(parts)} anchors but got {len(anchors)}. Give more data.")
    rng = random.Random(seed)
    rng.shuffle(anchors)
    ends = [round(sum(parts[: number + 1]) * len(anchors)) for number in range(len(parts))]
    cuts = [anchors[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    result = []
    for cut in cuts:
        rows = [triplet for anchor in cut for triplet in by_anchor[anchor]]
        rng.shuffle(rows)
        result.append(rows)
    return tuple(result)
