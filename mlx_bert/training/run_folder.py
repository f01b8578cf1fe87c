"""The output folder of a run: checkpoints to resume from, the best and the final model, the history.

Rank 0 alone writes and reads here; the other ranks, maybe on other machines, get from it what they need.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_bert.checkpoint import WEIGHTS, entries_of, finite_or_null, new_folder, write_json, write_safetensors
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.averaging import average_checkpoints
from mlx_bert.training.best_heads import FILE as BEST_HEADS
from mlx_bert.training.checkpoints import (
    METADATA,
    OPTIMIZER,
    Checkpoint,
    TrainState,
    best_checkpoints,
    checkpoint_folders,
    checkpoint_path,
    last_checkpoints,
    list_checkpoints,
    load_checkpoint,
    load_model_arrays,
    model_arrays,
    remove_partial_files,
    save_checkpoint,
)
from mlx_bert.training.distributed import World
from mlx_bert.training.lora import LoRAConfig, merged_lora, save_adapters

logger = logging.getLogger(__name__)

HISTORY = "history.json"
BEST_STATE = "best_state.safetensors"  # the best weights while the run lasts; best_model/ is what users load
BEST_BEFORE = "best_state_before.safetensors"  # those of the newest checkpoint's phase, if a later one has better ones


class RunFolder:
    """Reads and writes what a run keeps.

    Args:
        args: the settings; ``output_dir`` is the folder.
        model: what is trained.
        tokenizer: saved with the model.
        adapters: those of the model, if it has some.
        world: the ranks.
        setup: describes the data and what else a resumed run must have alike, by name.
        history_file: the name of the history.
    """

    def __init__(
        self,
        args: TrainingArgs,
        model: nn.Module,
        tokenizer: Tokenizer | None,
        adapters: LoRAConfig | None,
        world: World,
        setup: dict[str, Any],
        history_file: str = HISTORY,
    ) -> None:
        self.path = Path(args.output_dir)
        self.args = args
        self.model = model
        self.tokenizer = tokenizer
        self.adapters = adapters
        self.world = world
        self.setup = setup
        self.history_file = history_file
        self._saved_phase: int | None = None  # of the newest checkpoint

    def find_checkpoint(self, resume: bool | str | Path) -> Path | None:
        """The checkpoint to resume from; None to begin anew.

        Raises:
            FileExistsError: the folder has results of another run, and ``resume`` is False.
            ValueError: none of its checkpoints can be read.
        """
        found = self.world.on_main(lambda: self._find_checkpoint(resume))
        return None if found is None else Path(found)

    def _find_checkpoint(self, resume: bool | str | Path) -> str | None:
        if not isinstance(resume, bool):
            return str(resume)
        present = checkpoint_folders(self.path)
        if resume:
            readable = list_checkpoints(self.path)
            if present and not readable:
                raise ValueError(
                    f"[resume] {present[0]} has no metadata.json that can be read, and there is no other checkpoint. "
                    "Remove it to begin anew, or choose another folder."
                )
            return str(readable[-1][1]) if readable else None
        if present or any((self.path / name).exists() for name in ("best_model", "final_model", BEST_STATE)):
            raise FileExistsError(
                f"[train] {self.path} has results of another run. Choose another folder, remove it, or resume."
            )
        return None

    def prepare(self) -> None:
        """Make the folder and remove what a killed run left half written."""
        if self.world.is_main:
            self.path.mkdir(parents=True, exist_ok=True)
            remove_partial_files(self.path)

    def write_json(self, name: str, data: Any) -> None:
        """Write a JSON file."""
        if self.world.is_main:
            write_json(self.path / name, data)

    def write_history(self, state: TrainState) -> None:
        """Write the records of the run so far."""
        self.write_json(self.history_file, finite_or_null(state.history))

    def load_checkpoint(self, path: Path) -> Checkpoint:
        """Read a checkpoint and check that it belongs to this run; see :func:`checkpoints.load_checkpoint`."""
        found: list[Checkpoint] = []

        def load() -> list[Any]:
            found.append(load_checkpoint(path, self.args, self.setup))
            if path.resolve().parent == self.path.resolve():
                self._rewind_best(found[0].state)
            else:
                self._take_best(path.resolve().parent, found[0].state)
            return [found[0].state.to_dict(), found[0].average is not None]

        state, has_average = self.world.on_main(load)
        own = found[0] if found else None
        return Checkpoint(
            path,
            TrainState.from_dict(state),
            self.world.share_arrays(own and own.model),
            self.world.share_arrays(own and own.optimizer),
            self.world.share_arrays(own and own.average) if has_average else None,
        )

    def _rewind_best(self, state: TrainState) -> None:
        """Take back best weights of a later phase than the checkpoint's."""
        self._saved_phase = state.phase
        before = self.path / BEST_BEFORE
        if before.is_file() and _best_step(before) == state.best_step:
            before.replace(self.path / BEST_STATE)

    def _take_best(self, run: Path, state: TrainState) -> None:
        """Copy the best weights so far from another run's folder; what is no longer there is forgotten."""
        self._saved_phase = state.phase
        if (heads := run / BEST_HEADS).is_file():
            shutil.copyfile(heads, self.path / BEST_HEADS)
        if state.best_step is None:
            return
        for best in (run / BEST_STATE, run / BEST_BEFORE):
            if best.is_file() and _best_step(best) == state.best_step:
                shutil.copyfile(best, self.path / BEST_STATE)
                return
        logger.warning(
            "[resume] the best weights of %s, after %d updates, are not there any more: the best of the evaluations "
            "from here on will be kept.", run, state.best_step,
        )  # fmt: skip
        state.best_value, state.best_step, state.best_metrics = None, None, {}

    def save_checkpoint(
        self,
        state: TrainState,
        optimizer: dict[str, mx.array],
        average: dict[str, mx.array] | None,
        learning_rate: float,
        is_scheduled: bool = True,
    ) -> Path:
        """Write a checkpoint and say where; see :func:`checkpoints.save_checkpoint`."""
        if not self.world.is_main:
            return checkpoint_path(self.path, state, self.args, is_scheduled)
        path = save_checkpoint(
            self.path, state, self.args, self.model, optimizer, average, self.setup, learning_rate, is_scheduled
        )
        (self.path / BEST_BEFORE).unlink(missing_ok=True)
        self._saved_phase = state.phase
        return path

    def average(self, phase: int) -> tuple[dict[str, mx.array], list[str]]:
        """The mean of the checkpoints of a phase that the settings ask for, and their names; empty without any."""
        mean: dict[str, mx.array] = {}

        def load() -> list[str]:
            choose = best_checkpoints if self.args.average_of == "best" else last_checkpoints
            folders = choose(self.path, self.args.average_checkpoints, phase)
            mean.update(average_checkpoints(folders) if folders else {})
            return [folder.name for folder in folders]

        names = self.world.on_main(load)
        return self.world.share_arrays(mean), names

    def save_best(self, state: TrainState, optimizer: dict[str, mx.array]) -> None:
        """Keep the model as the best one so far; ``optimizer`` as in :meth:`save_model`."""
        if not self.world.is_main:
            return
        best, before = self.path / BEST_STATE, self.path / BEST_BEFORE
        saved = self._saved_phase
        if saved is not None and saved < state.phase and best.is_file() and not before.exists():
            best.replace(before)  # a run that is killed now will end that phase again, with its best weights
        write_safetensors(best, entries_of(model_arrays(self.model)), {"step": str(state.best_step)})
        self.save_model("best_model", state, optimizer)

    def restore_best(self, state: TrainState, is_last: bool) -> None:
        """Give the model the best weights of the run.

        Raises:
            FileExistsError: a complete run was resumed.
        """
        best: dict[str, mx.array] = {}

        def load() -> None:
            if not (self.path / BEST_STATE).is_file():
                raise FileExistsError(
                    f"[resume] the run in {self.path} is complete: see best_model and final_model. Nothing to do."
                )
            best.update(mx.load(str(self.path / BEST_STATE), format="safetensors"))

        self.world.on_main(load)
        load_model_arrays(self.model, self.world.share_arrays(best), "best model")
        mx.eval(self.model.parameters())
        if is_last and self.world.is_main and not (self.path / "best_model").exists():
            # a kill fell between two renames; of the optimiser's state then nothing is left
            self.save_model("best_model", state)

    def forget_best(self) -> None:
        """Remove the best weights of the run, which ``best_model`` has too."""
        if self.world.is_main:
            (self.path / BEST_STATE).unlink(missing_ok=True)
            (self.path / BEST_BEFORE).unlink(missing_ok=True)

    def save_model(self, name: str, state: TrainState, optimizer: dict[str, mx.array] | None = None) -> None:
        """Write a folder that ``from_pretrained`` loads, with ``metadata.json`` about the run.

        Args:
            name: of the folder.
            state: where the run stands.
            optimizer: the optimiser's state, written if ``save_optimizer`` is set.
        """
        if not self.world.is_main:
            return
        with new_folder(self.path / name, overwrite=True) as folder:
            if hasattr(self.model, "save_pretrained"):
                with merged_lora(self.model):
                    self.model.save_pretrained(folder)
                if self.tokenizer is not None:
                    self.tokenizer.save_pretrained(folder / "bert" if (folder / "bert").is_dir() else folder)
            else:
                write_safetensors(folder / WEIGHTS, entries_of(model_arrays(self.model)))
            is_best = name == "best_model"
            step = state.best_step if is_best else state.step
            history = {key: [record for record in records if record["step"] <= step]
                       for key, records in state.history.items()}  # fmt: skip
            latest = (history["epochs"] or [{}])[-1]
            if self.adapters is not None:
                save_adapters(self.model, folder / "adapters", self.adapters)
            if self.args.save_optimizer and optimizer is not None:
                write_safetensors(folder / OPTIMIZER, entries_of(optimizer))
            metadata = {
                "step": step,
                "metrics": state.best_metrics if is_best else latest,
                "best_metrics": state.best_metrics,
                "learning_rate": latest.get("learning_rate"),
                "history": history,
                "args": self.args.to_dict(),
            }
            write_json(folder / METADATA, metadata)


def _best_step(path: Path) -> int | None:
    """The updates before the weights of a best state."""
    _, metadata = mx.load(str(path), format="safetensors", return_metadata=True)
    return int(metadata["step"]) if "step" in metadata else None
