"""Train, validation and test parts: stratified where the data allow it, always deterministic."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

logger = logging.getLogger(__name__)


class Split(NamedTuple):
    """Indices of the examples of each part, ascending."""

    train: list[int]
    validation: list[int]
    test: list[int]


def split_examples(
    labels: Sequence[Hashable],
    validation_size: float = 0.1,
    test_size: float = 0.1,
    groups: Sequence[Hashable] | None = None,
    seed: int = 42,
) -> Split:
    """Split examples: the test part first, ``ceil(test_size * n)``, then validation from the rest in the same way.

    Each cut is stratified by (group, label); where that is impossible by group; else it is random. Every label keeps
    at least one training example. Data too small to be cut stay whole: all train, and the same examples are
    validation and test, with a warning.

    Args:
        labels: one per example.
        validation_size: part of what remains after the test part, in [0, 1).
        test_size: part of all, in [0, 1).
        groups: what to stratify by beside the label, for example the task.
        seed: the same seed gives the same split.

    Raises:
        ValueError: a size outside [0, 1), or no examples.
    """
    for name, size in (("validation_size", validation_size), ("test_size", test_size)):
        if not 0 <= size < 1:
            raise ValueError(f"[split] expected {name} in [0, 1) but got {size}. Choose a part such as 0.1.")
    if not labels:
        raise ValueError("[split] expected at least one example but got none. Check the data.")
    strata = list(zip(groups or [None] * len(labels), labels, strict=True))
    everything = list(range(len(strata)))
    rest, test = _cut(everything, strata, test_size, seed)
    train, validation = _cut(rest, strata, validation_size, seed)
    for part in (test, validation):
        _give_back(train, part, strata)
    if (test_size and not test) or (validation_size and not validation):
        logger.warning(
            "[split] %d examples are too few to set some aside: all are used for training and the same ones for "
            "evaluation, so the figures say nothing about new data.",
            len(strata),
        )
        whole = everything
        return Split(whole, whole if validation_size else [], whole if test_size else [])
    return Split(sorted(train), sorted(validation), sorted(test))


def _cut(indices: list[int], strata: list[tuple], size: float, seed: int) -> tuple[list[int], list[int]]:
    """Set ``ceil(size * n)`` of the indices aside; nothing if fewer than one would remain."""
    count = math.ceil(size * len(indices))
    if count == 0 or count >= len(indices):
        return list(indices), []
    from sklearn.model_selection import train_test_split

    for keys in ([strata[index] for index in indices], [strata[index][0] for index in indices], None):
        counts = Counter(keys) if keys else {}
        kinds = len(counts)
        if keys and (min(counts.values()) < 2 or count < kinds or len(indices) - count < kinds):
            continue  # scikit-learn cannot give each stratum a place in both parts
        codes = {key: code for code, key in enumerate(counts)}
        strata_codes = [codes[key] for key in keys] if keys else None
        kept, aside = train_test_split(indices, test_size=count, random_state=seed, stratify=strata_codes)
        return list(kept), list(aside)
    raise AssertionError("the random cut always works")


def _give_back(train: list[int], part: list[int], strata: list[tuple]) -> None:
    """Move one example of each label that lost all its training examples back to the training part."""
    seen = {strata[index] for index in train}
    for index in sorted(part):
        if strata[index] not in seen:
            seen.add(strata[index])
            part.remove(index)
            train.append(index)
