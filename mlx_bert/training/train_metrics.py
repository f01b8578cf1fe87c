"""Metrics of the training examples themselves, beside those of the evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlx_bert.data.readers import Example
from mlx_bert.training.callbacks import Callback

if TYPE_CHECKING:
    from mlx_bert.training.trainer import Trainer


class TrainMetrics(Callback):
    """Adds ``train_*`` metrics of the training examples to the record of each epoch, which costs a pass over them.

    The loss of the record stays the mean over the epoch's updates.

    Args:
        examples: those that are trained on.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def on_evaluate(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Measure at the end of an epoch, not within it."""
        if record["epoch"] != int(record["epoch"]):
            return
        found = trainer.evaluate(self.examples)
        record |= {f"train_{name}": value for name, value in found.items() if name != "loss"}
