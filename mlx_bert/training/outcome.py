"""How a run ends: with a result, interrupted, or with numbers that are none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


class NonFiniteLoss(ValueError):
    """The loss or the gradient of a batch is NaN or infinite."""


class TrainingInterrupted(KeyboardInterrupt):
    """The run was asked to stop, and did so after writing ``checkpoint``."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(f"[train] stopped. Resume from {checkpoint} with --resume (Trainer.train(resume=True)).")
        self.checkpoint = checkpoint


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        metrics: of the best evaluation (empty without evaluation).
        best_step: updates at that evaluation, or None.
        steps: updates done.
        seconds: of this call, evaluations included.
        stopped_early: whether patience ended it.
        history: the records of ``history.json``.
        output_dir: where everything lies.
    """

    metrics: dict[str, float]
    best_step: int | None
    steps: int
    seconds: float
    stopped_early: bool
    history: dict[str, list[dict[str, Any]]]
    output_dir: Path
