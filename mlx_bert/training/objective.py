"""What is trained and measured: the loss of a batch and the metrics of a data set, for a model with a head.

Dimension key: B batch, L tokens, C classes. Another kind of training (contrastive, several heads) is another class
with the same three methods.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

from mlx_bert.data.collate import IGNORE_INDEX, Arrays
from mlx_bert.training.distributed import World
from mlx_bert.training.freezing import fixed_tasks

INPUTS = ("input_ids", "hidden_states")
LOWER_IS_BETTER = ("loss", "error", "mae", "mse", "rmse", "perplexity", "hamming")


class Objective(Protocol):
    """What the trainer needs to know of a task. With ``needs_labels = False`` examples may come without labels.

    One whose loss exchanges arrays with other ranks has ``sit_out()``, which a rank calls in place of ``loss`` for an
    empty batch; it is not compiled.
    """

    def forward(self, model: nn.Module, batch: Arrays) -> dict[str, Any]:
        """The model's outputs for a batch. Compiled: no host code that depends on values."""

    def loss(self, model: nn.Module, outputs: Mapping[str, Any], batch: Arrays) -> tuple[mx.array, mx.array]:
        """The mean loss of a batch, and the number it is a mean over (its weight among other batches); scalars.

        Where the loss is a sum of K means over different numbers (of labels of each task), both are ``(K,)``, and
        another method gives the numbers alone, zeros for None: ``weights(model, labels) -> (K,)``. Batches of an
        update then add up to one large batch term by term.
        """

    def metrics(self, model: nn.Module, outputs: Mapping[str, Any], labels: Any) -> dict[str, float]:
        """Metrics from the outputs and labels of a whole data set."""


class HeadObjective:
    """Loss and metrics of a ``BertWithHead``, from its head.

    Args:
        needs_labels: whether the loss of the model's head needs labels.
    """

    needs_labels = True

    def __init__(self, needs_labels: bool = True) -> None:
        self.needs_labels = needs_labels

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """The objective of a model with a head."""
        return cls(getattr(getattr(model, "head", None), "needs_labels", True))

    def forward(self, model: Any, batch: Arrays) -> dict[str, Any]:
        """The head's outputs; encoder outputs in the batch (``hidden_states``) replace a run of the encoder."""
        if "hidden_states" in batch:
            return model.apply_head(batch["hidden_states"], batch.get("attention_mask"))
        return model(batch["input_ids"], batch.get("attention_mask"), batch.get("token_type_ids"))["head_outputs"]

    def loss(self, model: Any, outputs: Mapping[str, Any], batch: Arrays) -> tuple[mx.array, mx.array]:
        labels = batch.get("labels")
        if model.training and isinstance(labels, Mapping) and (fixed := fixed_tasks(model)):
            labels = {task: own for task, own in labels.items() if task not in fixed}
            if not labels:
                return mx.array(0.0), mx.array(0.0)
        loss = model.head.compute_loss(outputs, labels) + regularization(model)
        if labels is None:
            return loss, mx.array(float(next(batch[key] for key in INPUTS if key in batch).shape[0]))
        return loss, loss_weight(model.head, labels)

    def metrics(self, model: Any, outputs: Mapping[str, Any], labels: Any) -> dict[str, float]:
        return {name: float(value) for name, value in model.head.compute_metrics(outputs, labels).items()}


def regularization(model: nn.Module) -> mx.array | float:
    """The penalties on their weights that the blocks of a model's head declare; 0 outside training."""
    if not model.training:
        return 0.0
    return sum(
        module.regularization_loss()
        for _, module in model.head.named_modules()
        if hasattr(module, "regularization_loss")
    )


def loss_weight(head: Any, labels: Any) -> mx.array:
    """What the mean of a head's loss divides by, so that batches can be averaged exactly; a float32 scalar.

    The number of labels that are not ignored; their summed class weights where cross-entropy has class weights; the
    number of examples for labels in a dict.
    """
    if isinstance(labels, Mapping):
        return mx.array(float(next(array for _, array in tree_flatten(dict(labels))).shape[0]))
    counted = labels != IGNORE_INDEX
    weights = getattr(head, "_class_weights", None)
    is_class = mx.issubdtype(labels.dtype, mx.integer)
    if weights is None or not is_class or getattr(head, "loss", None) == "focal":
        return mx.sum(counted.astype(mx.float32))
    return mx.sum(mx.where(counted, weights[mx.where(counted, labels, 0)], 0.0))


def is_greater_better(metric: str) -> bool:
    """Whether more of a metric is better, from its name: losses and errors are the exception."""
    return not any(part in LOWER_IS_BETTER for part in metric.lower().split("_"))


def evaluate(
    model: nn.Module, objective: Objective, batches: Iterable[Arrays], forward: Any = None, world: World | None = None
) -> tuple[dict[str, float], dict[str, Any], Any]:
    """Run a model over a data set.

    Args:
        model: in evaluation mode.
        objective: the task.
        batches: with labels.
        forward: ``batch -> (outputs, loss, weight)``, for example compiled; None makes one.
        world: processes that each have a share of the batches (rank r the batches r, r + size, ...) and all get the
            result; None for this one alone.

    Returns:
        The metrics and ``loss``; the outputs of all batches, joined; the labels, joined.
    """
    forward = forward or batch_forward(model, objective)
    records = []
    for batch in batches:
        outputs, loss, weight = forward(batch)
        mx.eval(outputs, loss, weight)
        records.append(
            {
                "outputs": tree_map(_to_numpy, outputs),
                "labels": _labels_to_numpy(batch.get("labels")),
                "loss": np.array(loss),
                "weight": np.array(weight),
            }
        )
    if world is not None and world.size > 1:
        records = _from_all(records, world)
    joined = _join_outputs([record["outputs"] for record in records])
    labels = _join_labels([record["labels"] for record in records])
    weight, loss = (mx.array(np.stack([record[name] for record in records])) for name in ("weight", "loss"))
    mean = mx.sum(mx.sum(mx.where(weight > 0, loss * weight, 0.0), axis=0) / mx.maximum(mx.sum(weight, axis=0), 1e-9))
    metrics = objective.metrics(model, tree_map(mx.array, joined), labels)
    return {"loss": float(mean), **{k: v for k, v in metrics.items() if k != "loss"}}, joined, labels


def _from_all(records: list[dict[str, Any]], world: World) -> list[dict[str, Any]]:
    """The records of all ranks in the order of the batches; ranks take turns."""
    ranks: list[list[dict[str, Any]]] = []
    for arrays in world.gather({json.dumps(path): array for path, array in _leaves(records)}):
        own: list[dict[str, Any]] = []
        for path, array in arrays.items():
            number, *names = json.loads(path)
            if number == len(own):
                own.append({"labels": None})
            place = own[number]
            for name in names[:-1]:
                place[name] = place = place.get(name) or {}
            place[names[-1]] = array
        ranks.append(own)
    turns = itertools.zip_longest(*ranks)
    return [record for turn in turns for record in turn if record is not None]


def _leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], np.ndarray]]:
    """The arrays in lists and dicts, with the way to each; None is left out."""
    if isinstance(tree, (list, Mapping)):
        for key, entry in enumerate(tree) if isinstance(tree, list) else tree.items():
            yield from _leaves(entry, (*path, key))
    elif tree is not None:
        yield path, tree


def batch_forward(model: nn.Module, objective: Objective) -> Callable[[Arrays], Any]:
    """``batch -> (outputs that are arrays, loss, weight)``, to be compiled with the model's state as input."""

    def forward(batch: Arrays) -> tuple[dict[str, Any], mx.array, mx.array]:
        outputs = objective.forward(model, batch)
        loss, weight = objective.loss(model, outputs, batch)
        return _arrays(outputs), loss, weight

    return forward


def _arrays(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Only the arrays of a dict; those of several tasks lie in dicts of their own."""
    nested = {name: _arrays(value) if isinstance(value, Mapping) else value for name, value in outputs.items()}
    return {name: value for name, value in nested.items() if isinstance(value, mx.array | dict)}


def _to_numpy(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)


def _join(parts: list[np.ndarray], fill: float) -> np.ndarray:
    """Concatenate batches; axes that differ (token lengths) are padded at the end."""
    if parts[0].ndim == 0:
        return np.stack(parts)
    shape = np.max([part.shape[1:] for part in parts], axis=0).astype(int) if parts[0].ndim > 1 else []
    padded = [
        np.pad(part, [(0, 0), *((0, int(size) - have) for size, have in zip(shape, part.shape[1:], strict=True))],
               constant_values=fill)
        for part in parts
    ]  # fmt: skip
    return np.concatenate(padded)


def _join_outputs(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: (_join_outputs if isinstance(value, dict) else lambda own: _join(own, 0))([part[name] for part in parts])
        for name, value in parts[0].items()
    }


def _labels_to_numpy(labels: Any) -> Any:
    if isinstance(labels, Mapping):
        return {name: _labels_to_numpy(entry) for name, entry in labels.items()}
    return labels if labels is None else np.array(labels)


def _join_labels(labels: list[Any]) -> Any:
    if labels[0] is None:
        return None
    if isinstance(labels[0], Mapping):
        return {name: _join_labels([label[name] for label in labels]) for name in labels[0]}
    return mx.array(_join(labels, IGNORE_INDEX))
