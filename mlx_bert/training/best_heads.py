"""Each task's best head of a run that trains nothing but the heads of several tasks.

Such tasks share no parameter, so that heads of different evaluations fit together: none has to wait for the others, or
to go on beyond its best.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from mlx_bert.checkpoint import entries_of, write_safetensors
from mlx_bert.training.checkpoints import load_model_arrays, model_arrays
from mlx_bert.training.distributed import World
from mlx_bert.training.freezing import task_paths
from mlx_bert.training.step import flat_parameters

FILE = "best_heads.safetensors"


def heads_are_apart(model: nn.Module) -> bool:
    """Whether every parameter that trains belongs to one of several tasks alone."""
    paths = tuple(task_paths(model))
    return bool(paths) and all(name.startswith(paths) for name in flat_parameters(model))


class BestHeads:
    """Keeps each task's arrays of its own best evaluation, in the run's folder too.

    A resumed run evaluates again what the interrupted one had evaluated after the checkpoint, with the same results:
    what the file has from there stays right.

    Args:
        model: of several tasks.
        folder: of the run.
        world: the ranks; all of them have the same arrays.
        resumed: whether the run goes on from a checkpoint.
    """

    def __init__(self, model: nn.Module, folder: Path, world: World, resumed: bool) -> None:
        self.model, self.world, self.path = model, world, folder / FILE
        self.best: dict[str, tuple[float, int]] = {}  # {task: its metric, greater is better, and the update}
        self.arrays: dict[str, mx.array] = {}
        if resumed:
            self._load()

    def _load(self) -> None:
        found: dict[str, mx.array] = {}

        def load() -> dict[str, list]:
            if not self.path.is_file():
                return {}
            arrays, metadata = mx.load(str(self.path), format="safetensors", return_metadata=True)
            found.update(arrays)
            return json.loads(metadata["best"])

        self.best = {task: (value, step) for task, (value, step) in self.world.on_main(load).items()}
        self.arrays = self.world.share_arrays(found)

    def update(self, metrics: Mapping[str, float], name: str, sign: float, step: int) -> None:
        """Keep the heads that are better than before.

        Args:
            metrics: of an evaluation, ``{task}_{name}`` among them.
            name: of the metric.
            sign: 1 if greater is better, otherwise -1.
            step: updates so far.

        Raises:
            ValueError: the tasks have no such metric.
        """
        paths = task_paths(self.model)
        values = {task: sign * metrics[key] for task in set(paths.values()) if (key := f"{task}_{name}") in metrics}
        if not values:
            raise ValueError(
                f"[train] expected a metric that each task has with best_heads but got {name!r}. "
                "Choose 'loss', or another that the evaluation names for each task, without the task's name."
            )
        # NaN is not greater than anything
        better = {task: value for task, value in values.items() if value > self.best.get(task, (float("-inf"),))[0]}
        if not better:
            return
        self.best |= {task: (value, step) for task, value in better.items()}
        own = tuple(path for path, task in paths.items() if task in better)
        self.arrays |= {key: array for key, array in model_arrays(self.model).items() if key.startswith(own)}
        if self.world.is_main:
            write_safetensors(self.path, entries_of(self.arrays), {"best": json.dumps(self.best)})

    @property
    def steps(self) -> dict[str, int]:
        """{task: the updates before its best evaluation}."""
        return {task: step for task, (_, step) in self.best.items()}

    def install(self) -> None:
        """Give the model each task's best head."""
        load_model_arrays(self.model, {**model_arrays(self.model), **self.arrays}, "best heads")
        mx.eval(self.model.parameters())

    def forget(self) -> None:
        """Remove the file."""
        if self.world.is_main:
            self.path.unlink(missing_ok=True)
