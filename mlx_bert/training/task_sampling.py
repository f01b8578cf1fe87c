"""Drawing the tasks of a multi-task run by how hard each is at present."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mlx_bert.data.collate import IGNORE_INDEX
from mlx_bert.data.samplers import BatchIndices, LengthBucketSampler
from mlx_bert.training.callbacks import Callback


class TaskDifficulties(Callback):
    """How hard each task is, by the evaluations of the run that this is a callback of; see :func:`task_difficulties`.

    Args:
        tasks: their names.
        kind: ``"loss_ratio"`` or ``"error_rate"``.
    """

    def __init__(self, tasks: Sequence[str], kind: str = "error_rate") -> None:
        self.tasks = list(tasks)
        self.kind = kind
        self._trainer: Any = None

    def on_train_begin(self, trainer: Any) -> None:
        self._trainer = trainer

    def __call__(self, epoch: int) -> dict[str, float]:
        """{task: difficulty after so many epochs}; empty before the first evaluation."""
        return task_difficulties(self._trainer.state.history["epochs"], epoch, self.tasks, self.kind)


class DifficultySampler:
    """Draws more of the tasks that are harder at present; the first epoch takes every example once.

    Task t is drawn with a probability in proportion to ``difficulty_t^(1 / temperature)``, and within the task each of
    its labelled examples alike. An epoch has as many draws (with replacement) as there are examples.

    Args:
        labels: {task: id or -100} of each example.
        lengths: its tokens.
        batch_size, seed: as for :class:`LengthBucketSampler`.
        difficulties: epoch -> {task: difficulty so far}; empty before the first evaluation. A task that it does not
            name, without validation examples, counts as the mean of the others.
        temperature: above 1 nearer to equal shares, below 1 farther from them.
    """

    def __init__(
        self,
        labels: Sequence[Mapping[str, int]],
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        difficulties: Callable[[int], Mapping[str, float]],
        temperature: float = 1.0,
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.difficulties = difficulties
        self.temperature = temperature
        names = list(dict.fromkeys(task for row in labels for task in row))
        present = {task: np.array([row.get(task, IGNORE_INDEX) != IGNORE_INDEX for row in labels]) for task in names}
        self._present = {task: rows for task, rows in present.items() if rows.any()}

    def __len__(self) -> int:
        """Batches per epoch, the same for every epoch."""
        return -(-len(self.lengths) // self.batch_size)

    def probabilities(self, epoch: int) -> dict[str, float]:
        """The share of each task in an epoch; empty when nothing is known yet."""
        known = self.difficulties(epoch)
        if not known:
            return {}
        usual = sum(known.values()) / len(known)
        hard = [max(known.get(task, usual), 1e-6) for task in self._present]
        raised = np.array(hard) ** (1 / self.temperature)
        return {task: float(share) for task, share in zip(self._present, raised / raised.sum(), strict=True)}

    def batches(self, epoch: int = 0) -> list[BatchIndices]:
        """The batches of an epoch, in order."""
        weights = None
        if shares := self.probabilities(epoch):
            weights = sum(share * self._present[task] / self._present[task].sum() for task, share in shares.items())
        return LengthBucketSampler(self.lengths, self.batch_size, self.seed, weights=weights).batches(epoch)


def task_difficulties(
    records: Sequence[Mapping[str, Any]], epoch: int, tasks: Sequence[str], kind: str
) -> dict[str, float]:
    """How hard each task is after ``epoch`` epochs, from the records of ``history.json``.

    Args:
        records: with ``epoch``, ``eval_{task}_loss`` and ``eval_{task}_accuracy``.
        epoch: later records don't count, so that a resumed run draws what the uninterrupted one drew.
        tasks: their names.
        kind: ``"loss_ratio"``, the last loss over the first one, or ``"error_rate"``, 1 - the last accuracy.

    Returns:
        Empty before the first evaluation.
    """
    past = [record for record in records if record["epoch"] <= epoch]
    found = {}
    for task in tasks:
        values = [record for record in past if f"eval_{task}_loss" in record]
        if values and kind == "loss_ratio":
            found[task] = values[-1][f"eval_{task}_loss"] / max(values[0][f"eval_{task}_loss"], 1e-9)
        elif values:
            found[task] = 1 - values[-1][f"eval_{task}_accuracy"]
    return found
