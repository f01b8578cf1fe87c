"""Hooks into a training run: a progress bar, a readable log, and the base for loggers of one's own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO


class Callback:
    """Override what you need. ``trainer`` gives access to everything: ``trainer.state``, ``trainer.model``, ..."""

    def on_train_begin(self, trainer: Any) -> None:
        """The run begins or is resumed; ``trainer.total_steps`` is known."""

    def on_step(self, trainer: Any) -> None:
        """An update was done. Reading its loss here would wait for it; use :meth:`on_log`."""

    def on_log(self, trainer: Any, record: Mapping[str, Any]) -> None:
        """The loss was read: ``step``, ``loss``, ``grad_norm``, ``learning_rate``."""

    def on_evaluate(self, trainer: Any, record: Mapping[str, Any]) -> None:
        """An evaluation was done: ``step``, ``epoch``, ``train_loss``, ``eval_*``, ``is_best``."""

    def on_checkpoint(self, trainer: Any, path: Path) -> None:
        """A checkpoint was written."""

    def on_train_end(self, trainer: Any) -> None:
        """The run is over, also after an error."""


class ProgressBar(Callback):
    """A bar over all updates, with the latest loss."""

    def __init__(self) -> None:
        self.bar: Any = None

    def on_train_begin(self, trainer: Any) -> None:
        from tqdm import tqdm

        self.bar = tqdm(
            total=trainer.total_steps, initial=trainer.state.step, desc="train", unit="update", dynamic_ncols=True
        )

    def on_step(self, trainer: Any) -> None:
        self.bar.update()

    def on_log(self, trainer: Any, record: Mapping[str, Any]) -> None:
        self.bar.set_postfix(loss=f"{record['loss']:.4f}", refresh=False)

    def on_train_end(self, trainer: Any) -> None:
        if self.bar is not None:
            self.bar.close()


class EpochTable(Callback):
    """One line per evaluation: epoch, updates, losses, metrics, time.

    Args:
        metrics: names of the evaluation's metrics to show, without ``eval_``; those that it lacks are left out.
        stream: where to write; None for the standard output.
    """

    def __init__(self, metrics: tuple[str, ...] = (), stream: TextIO | None = None) -> None:
        self.metrics = metrics
        self.stream = stream
        self.shown: list[str] | None = None

    def on_evaluate(self, trainer: Any, record: Mapping[str, Any]) -> None:
        if self.shown is None:
            self.shown = [name for name in dict.fromkeys(("loss", *self.metrics)) if f"eval_{name}" in record]
            self._write(
                "".join(f"{name:>12}" for name in ("epoch", "updates", "train loss", *self._heads(), "seconds"))
            )
        cells = [f"{record['epoch']:>12g}", f"{record['step']:>12}", f"{record['train_loss']:>12.4f}"]
        cells += [f"{record[f'eval_{name}']:>12.4f}" for name in self.shown]
        self._write("".join([*cells, f"{record['seconds']:>12.1f}", "  best" if record.get("is_best") else ""]))

    def _heads(self) -> list[str]:
        return [f"eval {name}"[:11] for name in self.shown or ()]

    def _write(self, line: str) -> None:
        from tqdm import tqdm

        tqdm.write(line, file=self.stream or sys.stdout)
