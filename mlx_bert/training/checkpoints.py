"""Checkpoints of a run: everything that an exact resume needs.

In ``output_dir``, those of an epoch's end (``save_every="epoch"``) are ``checkpoint_epoch_<epochs>``, counted over all
phases; all others, those of a stop too, are ``checkpoint_<updates>``. Which is newer, the updates in their
``metadata.json`` tell, never the names.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_bert.checkpoint import WEIGHTS, entries_of, new_folder, read_json, write_json, write_safetensors
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.setup import differences

OPTIMIZER = "optimizer.safetensors"
AVERAGE = "average.safetensors"
METADATA = "metadata.json"
FORMAT = 2
_NAME = re.compile(r"checkpoint_(epoch_)?\d+")
# Settings that a resumed run may change: they don't touch the numbers.
FREE_SETTINGS = (
    *("output_dir", "save_every", "keep_checkpoints", "save_optimizer"),
    *("log_every", "progress", "cache_dir", "log_to", "plot"),
)

logger = logging.getLogger(__name__)


@dataclass
class TrainState:
    """Where a run stands. All counters start at 0.

    Attributes:
        step: updates done. phase_step: those of the present phase.
        micro_step: batches done; seeds the dropout of the next one.
        phase, epoch, update: present phase, epoch within it, update within the epoch.
        passes: epochs done over all phases; seeds the order of the next one.
        best_value, best_step, best_metrics: of the best evaluation so far; None and empty before the first.
        patience_value, stale: reference value of early stopping, and evaluations since it improved.
        epoch_loss, epoch_weight: sums over the present epoch.
        score, score_step: of the latest evaluation: its metric, greater is better, and the updates before it.
        stopped_early: whether patience ended a phase.
        history: ``epochs`` and ``steps``, the records of ``history.json``.
    """

    step: int = 0
    phase_step: int = 0
    micro_step: int = 0
    phase: int = 0
    epoch: int = 0
    update: int = 0
    passes: int = 0
    best_value: float | None = None
    best_step: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    patience_value: float | None = None
    stale: int = 0
    score: float | None = None
    score_step: int | None = None
    epoch_loss: float = 0.0
    epoch_weight: float = 0.0
    stopped_early: bool = False
    history: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"epochs": [], "steps": []})

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The state that :meth:`to_dict` gave."""
        return cls(**values)


def buffers_of(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Where each saved buffer of a model lives (arrays that no optimiser touches)."""
    return {
        f"{path}._{name}".lstrip("."): (module, f"_{name}")
        for path, module in model.named_modules()
        for name in getattr(type(module), "SAVED_BUFFERS", ())
    }


def model_arrays(model: nn.Module) -> dict[str, mx.array]:
    """All parameters and saved buffers, flat, under their names in memory."""
    arrays = dict(tree_flatten(model.parameters()))
    return arrays | {name: getattr(module, key) for name, (module, key) in buffers_of(model).items()}


def load_model_arrays(model: nn.Module, arrays: Mapping[str, mx.array], where: str = "checkpoint") -> None:
    """Put arrays of :func:`model_arrays` back.

    Raises:
        ValueError: names or shapes differ from the model's.
    """
    mine = model_arrays(model)
    problems = sorted(mine.keys() ^ arrays.keys())
    problems += [name for name in mine.keys() & arrays.keys() if mine[name].shape != arrays[name].shape]
    if problems:
        raise ValueError(
            f"[{where}] expected the arrays of this model but got others: {', '.join(problems[:5])}. "
            "Resume with the model and the head that the run began with."
        )
    buffers = buffers_of(model)
    for name, (module, key) in buffers.items():
        setattr(module, key, arrays[name])
    model.update(tree_unflatten([(name, array) for name, array in arrays.items() if name not in buffers]))


def save_checkpoint(
    output_dir: Path,
    state: TrainState,
    args: TrainingArgs,
    model: nn.Module,
    optimizer: Mapping[str, mx.array],
    average: Mapping[str, mx.array] | None,
    setup: Mapping[str, Any],
    learning_rate: float,
    is_scheduled: bool = True,
) -> Path:
    """Write a checkpoint completely or not at all, then remove those beyond ``keep_checkpoints``.

    Those that the mean needs stay. It does not count one that is not scheduled, of a run that was asked to stop.
    """
    path = checkpoint_path(output_dir, state, args, is_scheduled)
    with new_folder(path, overwrite=True) as folder:
        write_safetensors(folder / WEIGHTS, entries_of(model_arrays(model)))
        write_safetensors(folder / OPTIMIZER, entries_of(optimizer))
        if average is not None:
            write_safetensors(folder / AVERAGE, entries_of(average))
        metadata = {
            "format": FORMAT,
            "step": state.step,
            "learning_rate": learning_rate,
            "best_metrics": state.best_metrics,
            "score": state.score if state.score_step == state.step else None,
            "is_scheduled": is_scheduled,
            "setup": setup,
            "args": args.to_dict(),
            "state": state.to_dict(),
        }
        write_json(folder / METADATA, metadata)
    for name in {f"checkpoint_{state.step}", f"checkpoint_epoch_{state.passes}"} - {path.name}:
        if state.update == 0 and (output_dir / name).is_dir():  # of the same updates, before save_every changed
            _remove(output_dir / name)
    if args.keep_checkpoints:
        averaged = best_checkpoints if args.average_of == "best" else last_checkpoints
        kept = averaged(output_dir, args.average_checkpoints) if args.average_checkpoints else []
        for _, old in list_checkpoints(output_dir)[: -args.keep_checkpoints]:
            if old not in kept:
                _remove(old)
    return path


def checkpoint_path(output_dir: Path, state: TrainState, args: TrainingArgs, is_scheduled: bool) -> Path:
    """Where the checkpoint of a state lies: ``checkpoint_epoch_<passes>`` if ``save_every="epoch"`` asks for it."""
    by_epoch = is_scheduled and args.save_every == "epoch"
    return output_dir / (f"checkpoint_epoch_{state.passes}" if by_epoch else f"checkpoint_{state.step}")


def _remove(folder: Path) -> None:
    """Remove a checkpoint; one that is half removed when the run is killed has no longer its name."""
    hidden = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def best_checkpoints(output_dir: str | Path, count: int, phase: int | None = None) -> list[Path]:
    """The folders of the best ``count`` scheduled checkpoints by the evaluation at each, oldest first.

    Args:
        output_dir: of the run.
        count: how many; fewer if there are no more.
        phase: only those of this phase of the run, from 0; None for the newest one's.
    """
    found = [
        (metadata["score"], metadata["step"], path)
        for path, metadata in _of_phase(output_dir, phase)
        if metadata["score"] is not None
    ]
    return [path for _, _, path in sorted(sorted(found)[-count:], key=lambda entry: entry[1])]


def last_checkpoints(output_dir: str | Path, count: int, phase: int | None = None) -> list[Path]:
    """The folders of the last ``count`` scheduled checkpoints, oldest first; see :func:`best_checkpoints`."""
    return [path for path, _ in _of_phase(output_dir, phase)][-count:]


def _of_phase(output_dir: str | Path, phase: int | None) -> list[tuple[Path, dict[str, Any]]]:
    found = _with_metadata(output_dir)
    wanted = phase if phase is not None or not found else found[-1][1]["state"]["phase"]
    return [
        (path, metadata)
        for path, metadata in found
        if metadata["state"]["phase"] == wanted and metadata.get("is_scheduled", True)
    ]


def list_checkpoints(output_dir: str | Path) -> list[tuple[int, Path]]:
    """Step and folder of each checkpoint, oldest first; a folder without readable metadata is none."""
    return [(metadata["step"], path) for path, metadata in _with_metadata(output_dir)]


def checkpoint_folders(output_dir: str | Path) -> list[Path]:
    """All folders that are called as a checkpoint is, readable or not."""
    return [path for path in Path(output_dir).glob("checkpoint_*") if _NAME.fullmatch(path.name) and path.is_dir()]


def _with_metadata(output_dir: str | Path) -> list[tuple[Path, dict[str, Any]]]:
    """Folder and metadata of each checkpoint, by the updates before it."""
    found = []
    for path in checkpoint_folders(output_dir):
        try:
            metadata = read_json(path / METADATA)
            found.append((int(metadata["step"]), path, metadata))
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("[checkpoints] %s is passed over, as its metadata cannot be read: %s", path, error)
    return [(path, metadata) for _, path, metadata in sorted(found, key=lambda entry: entry[:2])]


def remove_partial_files(output_dir: Path) -> None:
    """Remove what a killed run left half written: the hidden neighbours that become files and folders by a rename."""
    for path in output_dir.glob(".*"):
        if path.name.startswith((".checkpoint_", ".best_", ".final_model.", ".history.", ".training_", ".curves.")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds; arrays are read when used."""

    path: Path
    state: TrainState
    model: dict[str, mx.array]
    optimizer: dict[str, mx.array]
    average: dict[str, mx.array] | None


def load_checkpoint(path: Path, args: TrainingArgs, setup: Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint and check that it belongs to this run.

    Args:
        path: its folder.
        args: the settings of this run.
        setup: the description of its parts (:func:`setup.setup_of`).

    Raises:
        FileNotFoundError: not a checkpoint folder.
        ValueError: other settings, other data, another objective or sampler, or another format.
    """
    metadata = read_json(path / METADATA)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"[resume] expected {path} in format {FORMAT} but got {metadata.get('format')!r}. Train anew.")
    saved, now = TrainingArgs.from_dict(metadata["args"]).to_dict(), args.to_dict()
    differing = [name for name in now if name not in FREE_SETTINGS and saved.get(name) != now[name]]
    if differing:
        shown = "; ".join(f"{name} was {saved.get(name)!r} and is {now[name]!r}" for name in differing)
        raise ValueError(
            f"[resume] {path} was written with other settings: {shown}. Give the same ones, or train anew."
        )
    for part, described in setup.items():
        if differing := differences(metadata["setup"].get(part), described):
            shown = "" if part == "training data" else f": {'; '.join(differing[:5])}"
            raise ValueError(
                f"[resume] {path} was written with other {part}{shown}. Give the same as then, or train anew."
            )
    average = mx.load(str(path / AVERAGE), format="safetensors") if (path / AVERAGE).is_file() else None
    return Checkpoint(
        path,
        TrainState.from_dict(metadata["state"]),
        mx.load(str(path / WEIGHTS), format="safetensors"),
        mx.load(str(path / OPTIMIZER), format="safetensors"),
        average,
    )
