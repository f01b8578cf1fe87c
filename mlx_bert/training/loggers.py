"""Where a run's numbers go besides ``history.json``: TensorBoard event files, Weights & Biases, a picture of curves.

Chosen with ``TrainingArgs.log_to`` and ``plot``. Each is a callback; of several ranks only rank 0 logs.
"""

from __future__ import annotations

import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx_bert.plots import curves_png, require_matplotlib
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback

CURVES = "curves.png"
REDRAW_SECONDS = 20.0  # drawing takes about one: not after each of many evaluations
NOT_METRICS = ("step", "epoch")


def loggers_of(args: TrainingArgs) -> list[Callback]:
    """The callbacks that the settings ask for.

    Raises:
        ImportError: the library of one of them is missing; the message names the extra.
    """
    names = [name.strip() for name in (args.log_to or "").split(",") if name.strip()]
    loggers: list[Callback] = [LOGGERS[name](Path(args.output_dir)) for name in names]
    return [*loggers, CurvesPlot(Path(args.output_dir) / CURVES)] if args.plot else loggers


class TensorBoardLog(Callback):
    """Writes event files that TensorBoard shows: ``tensorboard --logdir OUTPUT/tensorboard``.

    Args:
        output_dir: of the run.

    Raises:
        ImportError: tensorboardX is missing.
    """

    main_only = True

    def __init__(self, output_dir: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ImportError(
                "[log] log_to 'tensorboard' needs tensorboardX: pip install 'mlx-bert[tensorboard]'."
            ) from None
        self.folder = output_dir / "tensorboard"
        self._writer_class = SummaryWriter
        self._writer: Any = None

    def on_train_begin(self, trainer: Any) -> None:
        step = trainer.state.step
        # a run that was killed may have logged more than its last checkpoint has
        purge = step + 1 if step else None
        # file names hold whole seconds: of two runs within one, the second would write over the first
        self._writer = self._writer_class(str(self.folder), purge_step=purge, filename_suffix=f".{time.time_ns()}")
        shown = "\n".join(f"    {name}: {value}" for name, value in trainer.args.to_dict().items())
        self._writer.add_text("settings", shown, step)

    def on_log(self, trainer: Any, record: Mapping[str, Any]) -> None:
        for name, value in _scalars("train", record):
            self._writer.add_scalar(name, value, record["step"])

    def on_evaluate(self, trainer: Any, record: Mapping[str, Any]) -> None:
        for name, value in _scalars("", record):
            self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()

    def on_train_end(self, trainer: Any) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbLog(Callback):
    """Logs to Weights & Biases; ``WANDB_MODE=offline`` and its other environment variables work as usual.

    The project is ``WANDB_PROJECT``, or ``mlx-bert``. A resumed run goes on in the same W&B run.

    Args:
        output_dir: of the run; W&B's own files go there too.

    Raises:
        ImportError: wandb is missing.
    """

    main_only = True

    def __init__(self, output_dir: Path) -> None:
        try:
            import wandb
        except ImportError:
            raise ImportError("[log] log_to 'wandb' needs wandb: pip install 'mlx-bert[wandb]'.") from None
        self.output_dir = output_dir
        self._wandb = wandb
        self._run: Any = None

    def on_train_begin(self, trainer: Any) -> None:
        name = self.output_dir / "wandb_id.txt"
        if not (trainer.state.step and name.is_file()):
            name.write_text(secrets.token_hex(4), encoding="utf-8")
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "mlx-bert"),
            dir=str(self.output_dir),
            config=trainer.args.to_dict(),
            id=name.read_text(encoding="utf-8").strip(),
            resume="allow",
        )

    def on_log(self, trainer: Any, record: Mapping[str, Any]) -> None:
        self._run.log(dict(_scalars("train", record)), step=record["step"])

    def on_evaluate(self, trainer: Any, record: Mapping[str, Any]) -> None:
        self._run.log(dict(_scalars("", record)), step=record["step"])

    def on_train_end(self, trainer: Any) -> None:
        if self._run is not None:
            self._run.finish()


class CurvesPlot(Callback):
    """Draws the history so far as a PNG: losses, learning rate, metrics.

    Args:
        path: the picture; it is replaced as a whole.

    Raises:
        ImportError: matplotlib is missing.
    """

    main_only = True

    def __init__(self, path: Path) -> None:
        require_matplotlib()
        self.path = path
        self._drawn = -math.inf

    def on_evaluate(self, trainer: Any, record: Mapping[str, Any]) -> None:
        if time.monotonic() - self._drawn > REDRAW_SECONDS:
            self._draw(trainer)

    def on_train_end(self, trainer: Any) -> None:
        self._draw(trainer)

    def _draw(self, trainer: Any) -> None:
        if any(trainer.state.history.values()):
            curves_png(trainer.state.history, self.path)
            self._drawn = time.monotonic()


LOGGERS: dict[str, Callable[[Path], Callback]] = {"tensorboard": TensorBoardLog, "wandb": WandbLog}


def _scalars(group: str, record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a record as ``train/loss`` or ``eval/accuracy``; names that have a group keep theirs."""
    for name, value in record.items():
        if name in NOT_METRICS or isinstance(value, (bool, str)) or value is None:
            continue
        own, _, rest = name.partition("_")
        if group:
            yield f"{group}/{name}", value
        elif own in ("eval", "train"):
            yield (f"{own}/{rest}" if own == "eval" else f"train/epoch_{rest}"), value
