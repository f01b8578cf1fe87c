"""Which examples form which batch: a pure function of (seed, epoch), so that a resumed run repeats it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CHUNK_BATCHES = 50  # batches whose examples are sorted by length together: random enough, little padding


class BatchIndices(NamedTuple):
    """The examples of one batch; ``task`` names the data set in multi-task training."""

    indices: np.ndarray
    task: str | None = None


class LengthBucketSampler:
    """Shuffled batches of texts of similar length: shuffle, sort chunks of batches by length, shuffle the batches.

    Args:
        lengths: tokens of each example.
        batch_size: examples in a batch; the last one may be smaller.
        seed: the same seed gives the same batches.
        shuffle: False for evaluation: every example once, sorted by length.
        weights: draw with these probabilities (with replacement) instead of taking each example once.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int = 42,
        shuffle: bool = True,
        weights: Sequence[float] | None = None,
    ) -> None:
        if not len(lengths):
            raise ValueError("[sampler] expected at least one example but got none. Check the data.")
        if batch_size < 1:
            raise ValueError(f"[sampler] expected a positive batch_size but got {batch_size}. Set batch_size.")
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.weights = None if weights is None else np.asarray(weights, dtype=np.float64) / np.sum(weights)

    def __len__(self) -> int:
        """Batches per epoch, the same for every epoch."""
        return -(-len(self.lengths) // self.batch_size)

    def batches(self, epoch: int = 0) -> list[BatchIndices]:
        """The batches of an epoch, in order."""
        count = len(self.lengths)
        if not self.shuffle:
            order = np.argsort(self.lengths, kind="stable")
            return [BatchIndices(order[start : start + self.batch_size]) for start in range(0, count, self.batch_size)]
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(count) if self.weights is None else random.choice(count, count, p=self.weights)
        return [BatchIndices(indices) for indices in bucketed(order, self.lengths, self.batch_size, random)]


class TaskSampler:
    """Batches of several data sets, each batch of one task, shuffled across tasks.

    An epoch takes ``round(n_max^(1 - a) * n_t^a)`` examples of task t: a = 1 takes each example once
    (``"proportional"``), 1/2 the geometric middle (``"sqrt"``), 0 the same number of each task (``"equal"``).
    Examples are drawn without replacement; a task that is drawn more often than it has examples starts over with a
    fresh permutation. What an epoch leaves out comes in the next, so that over epochs every example is used.

    Args:
        lengths: tokens of each example, per task.
        batch_size: examples in a batch.
        strategy: ``"proportional"``, ``"sqrt"`` or ``"equal"``.
        seed: the same seed gives the same batches.
    """

    EXPONENTS = {"proportional": 1.0, "sqrt": 0.5, "equal": 0.0}  # noqa: RUF012

    def __init__(
        self, lengths: dict[str, Sequence[int]], batch_size: int, strategy: str = "proportional", seed: int = 42
    ) -> None:
        if strategy not in self.EXPONENTS:
            known = ", ".join(self.EXPONENTS)
            raise ValueError(f"[sampler] expected task sampling to be one of {known} but got {strategy!r}.")
        if empty := [task for task, tokens in lengths.items() if not len(tokens)] or not lengths:
            raise ValueError(f"[sampler] expected examples for every task but got none for {empty}. Check the data.")
        self.lengths = {task: np.asarray(tokens, dtype=np.int64) for task, tokens in lengths.items()}
        self.batch_size = batch_size
        self.seed = seed
        self.quotas = task_quotas({task: len(tokens) for task, tokens in lengths.items()}, self.EXPONENTS[strategy])

    def __len__(self) -> int:
        """Batches per epoch, the same for every epoch."""
        return sum(-(-quota // self.batch_size) for quota in self.quotas.values())

    def batches(self, epoch: int = 0) -> list[BatchIndices]:
        """The batches of an epoch, in order."""
        batches = []
        for number, (task, quota) in enumerate(self.quotas.items()):
            random = np.random.default_rng((self.seed, epoch, number))
            order = self._draw(number, task, epoch * quota, quota)
            batches += [
                BatchIndices(indices, task) for indices in bucketed(order, self.lengths[task], self.batch_size, random)
            ]
        np.random.default_rng((self.seed, epoch)).shuffle(order := np.arange(len(batches)))
        return [batches[index] for index in order]

    def _draw(self, number: int, task: str, start: int, count: int) -> np.ndarray:
        """Places ``start`` to ``start + count`` of the task's endless row of permutations."""
        size = len(self.lengths[task])
        first, last = start // size, (start + count - 1) // size
        row = [
            np.random.default_rng((self.seed, 1 + turn, number, 7)).permutation(size) for turn in range(first, last + 1)
        ]
        return np.concatenate(row)[start - first * size :][:count]


def task_quotas(counts: dict[str, int], exponent: float) -> dict[str, int]:
    """Examples per task and epoch, ``round(n_max^(1 - exponent) * n_t^exponent)``."""
    largest = max(counts.values())
    return {task: round(largest ** (1 - exponent) * count**exponent) for task, count in counts.items()}


def balanced_weights(labels: Sequence[int]) -> list[float]:
    """Sampling weights that draw each class equally often: one over the count of the example's class."""
    classes, place, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    return [float(weight) for weight in 1.0 / counts[place] / len(classes)]


def bucketed(order: np.ndarray, lengths: np.ndarray, batch_size: int, random: np.random.Generator) -> list[np.ndarray]:
    """Cut a shuffled order into batches of similar length, in random order."""
    chunk = batch_size * CHUNK_BATCHES
    batches = []
    for start in range(0, len(order), chunk):
        part = order[start : start + chunk]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[at : at + batch_size] for at in range(0, len(part), batch_size)]
    return [batches[index] for index in random.permutation(len(batches))]
