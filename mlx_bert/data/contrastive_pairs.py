"""Pairs of labelled texts that belong together or not: what a few examples teach an encoder."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

SAMPLINGS = ("oversampling", "undersampling", "unique")


def contrastive_pairs(
    texts: Sequence[str],
    labels: Sequence[Hashable],
    sampling: str = "oversampling",
    num_iterations: int | None = None,
    max_pairs: int | None = None,
    seed: int = 42,
) -> list[dict[str, Any]]:
    """Pairs of two texts, scored 1 if their labels are equal and 0 if not (Tunstall et al. 2022).

    Args:
        texts: labelled texts.
        labels: the class of each.
        sampling: ``"unique"``: every pair once; ``"oversampling"``: the rarer kind again and again until both are as
            many; ``"undersampling"``: only as many of the commoner kind as there are of the rarer one.
        num_iterations: so many pairs of each kind for each text instead, again and again if need be.
        max_pairs: at most so many different pairs, half of each kind.
        seed: the same seed gives the same pairs.

    Returns:
        ``text_a``, ``text_b`` and ``score``; the kinds by turns, where both are left.

    Raises:
        ValueError: not one label per text, fewer than two classes, an unknown sampling, or numbers below 1.
    """
    if len(texts) != len(labels):
        raise ValueError(f"[few-shot] expected a label for each of {len(texts)} texts but got {len(labels)}.")
    if len(set(labels)) < 2:
        raise ValueError(f"[few-shot] expected at least 2 classes but got {len(set(labels))}. Add examples of others.")
    if sampling not in SAMPLINGS:
        raise ValueError(f"[few-shot] expected sampling to be one of {', '.join(SAMPLINGS)} but got {sampling!r}.")
    for name, value, least in (("num_iterations", num_iterations, 1), ("max_pairs", max_pairs, 2)):
        if value is not None and value < least:
            raise ValueError(f"[few-shot] expected {name} of at least {least} but got {value}. Use None for none.")
    most = None if max_pairs is None else max_pairs // 2
    places = np.stack(np.triu_indices(len(texts), 1), axis=-1)
    places = places[np.random.default_rng(seed).permutation(len(places))]
    together = np.array([labels[i] == labels[j] for i, j in places.tolist()], dtype=bool)
    kinds = [places[together][:most].tolist(), places[~together][:most].tolist()]
    sizes = [len(kind) for kind in kinds]
    if num_iterations is not None:
        sizes = [num_iterations * len(texts)] * 2
    elif sampling != "unique":
        sizes = [max(sizes) if sampling == "oversampling" else min(sizes)] * 2
    drawn = [
        [kind[n % len(kind)] for n in range(size)] if kind else [] for kind, size in zip(kinds, sizes, strict=True)
    ]
    scored = [[(*pair, score) for pair in kind] for score, kind in zip((1.0, 0.0), drawn, strict=True)]
    by_turns = [pair for turn in zip_longest(*scored) for pair in turn if pair is not None]
    return [{"text_a": texts[first], "text_b": texts[second], "score": score} for first, second, score in by_turns]


def take_per_class(labels: Sequence[Hashable], count: int, seed: int = 42) -> list[int]:
    """Places of ``count`` random examples of each class (all of a smaller one), in order.

    Raises:
        ValueError: a count below 1.
    """
    if count < 1:
        raise ValueError(f"[few-shot] expected at least 1 example per class but got {count}.")
    left: dict[Hashable, int] = dict.fromkeys(labels, count)
    chosen = []
    for place in np.random.default_rng(seed).permutation(len(labels)).tolist():
        if left[labels[place]]:
            left[labels[place]] -= 1
            chosen.append(place)
    return sorted(chosen)
