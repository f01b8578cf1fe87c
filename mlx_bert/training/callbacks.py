"""Hooks into a training run: a progress bar, a readable log, and the base for loggers of one's own."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO


class Callback:
    """Override what you need. ``trainer`` gives access to everything: ``trainer.state``, ``trainer.model``, ...

    In data-parallel training each rank calls its own; ``main_only`` leaves it to rank 0, for what prints or writes.
    A callback with ``main_only`` must not evaluate, which all ranks do together.
    """

    main_only = False

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

    main_only = True

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

    main_only = True

    def __init__(self, metrics: tuple[str, ...] = (), stream: TextIO | None = None) -> None:
        self.metrics = metrics
        self.stream = stream
        self.shown: list[str] | None = None
        self.widths: list[int] = []

    def on_evaluate(self, trainer: Any, record: Mapping[str, Any]) -> None:
        shown = [name for name in dict.fromkeys(("loss", *self.metrics)) if f"eval_{name}" in record]
        if self.shown is None or (shown and not self.shown):  # an epoch may end before the first evaluation
            self.shown = shown
            titles = ("epoch", "updates", "train loss", *(f"eval {name}" for name in shown), "seconds")
            self.widths = [max(9, len(title)) + 2 for title in titles]
            self._row(titles)
        values = [record["train_loss"], *(record.get(f"eval_{name}") for name in self.shown)]
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        cells = [f"{record['epoch']:.4g}", str(record["step"]), *cells, f"{record['seconds']:.1f}"]
        self._row(cells, "  best" if record.get("is_best") else "")

    def _row(self, cells: Sequence[str], mark: str = "") -> None:
        self._write("".join(f"{cell:>{width}}" for cell, width in zip(cells, self.widths, strict=True)) + mark)

    def _write(self, line: str) -> None:
        from tqdm import tqdm

        tqdm.write(line, file=self.stream or sys.stdout)
