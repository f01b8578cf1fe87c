"""What is trained and measured: the loss of a batch and the metrics of a data set, for a model with a head.

Dimension key: B batch, L tokens, C classes. Another kind of training (contrastive, several heads) is another class
with the same three methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_bert.data.collate import IGNORE_INDEX, Arrays

LOWER_IS_BETTER = ("loss", "error", "mae", "mse", "rmse", "perplexity", "hamming")


class Objective(Protocol):
    """What the trainer needs to know of a task. With ``needs_labels = False`` examples may come without labels."""

    def forward(self, model: nn.Module, batch: Arrays) -> dict[str, Any]:
        """The model's outputs for a batch. Compiled: no host code that depends on values."""

    def loss(self, model: nn.Module, outputs: Mapping[str, Any], batch: Arrays) -> tuple[mx.array, mx.array]:
        """The mean loss of a batch, and the number it is a mean over (its weight among other batches); scalars."""

    def metrics(self, model: nn.Module, outputs: Mapping[str, Any], labels: Any) -> dict[str, float]:
        """Metrics from the outputs and labels of a whole data set."""


class HeadObjective:
    """Loss and metrics of a ``BertWithHead``, from its head."""

    def forward(self, model: Any, batch: Arrays) -> dict[str, Any]:
        """The head's outputs; encoder outputs in the batch (``hidden_states``) replace a run of the encoder."""
        if "hidden_states" in batch:
            return model.head(batch["hidden_states"], batch.get("attention_mask"))
        return model(batch["input_ids"], batch.get("attention_mask"), batch.get("token_type_ids"))["head_outputs"]

    def loss(self, model: Any, outputs: Mapping[str, Any], batch: Arrays) -> tuple[mx.array, mx.array]:
        loss = model.head.compute_loss(outputs, batch["labels"])
        return loss, loss_weight(model.head, batch["labels"])

    def metrics(self, model: Any, outputs: Mapping[str, Any], labels: Any) -> dict[str, float]:
        return {name: float(value) for name, value in model.head.compute_metrics(outputs, labels).items()}


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
    model: nn.Module, objective: Objective, batches: Iterable[Arrays], forward: Any = None
) -> tuple[dict[str, float], dict[str, np.ndarray], Any]:
    """Run a model over a data set.

    Args:
        model: in evaluation mode.
        objective: the task.
        batches: with labels.
        forward: ``batch -> (outputs, loss, weight)``, for example compiled; None makes one.

    Returns:
        The metrics and ``loss``; the outputs of all batches, joined; the labels, joined.
    """
    forward = forward or batch_forward(model, objective)
    gathered, labels, losses, weights = [], [], [], []
    for batch in batches:
        outputs, loss, weight = forward(batch)
        mx.eval(outputs, loss, weight)
        gathered.append({name: _to_numpy(value) for name, value in outputs.items()})
        labels.append(batch.get("labels"))
        losses.append(loss)
        weights.append(weight)
    joined = {name: _join([outputs[name] for outputs in gathered], 0) for name in gathered[0]}
    all_labels = _join_labels(labels)
    weight, loss = mx.stack(weights), mx.stack(losses)
    mean = mx.sum(mx.where(weight > 0, loss * weight, 0.0)) / mx.maximum(mx.sum(weight), 1e-9)
    metrics = objective.metrics(model, {name: mx.array(value) for name, value in joined.items()}, all_labels)
    return {"loss": float(mean), **{k: v for k, v in metrics.items() if k != "loss"}}, joined, all_labels


def batch_forward(model: nn.Module, objective: Objective) -> Callable[[Arrays], Any]:
    """``batch -> (outputs that are arrays, loss, weight)``, to be compiled with the model's state as input."""

    def forward(batch: Arrays) -> tuple[dict[str, mx.array], mx.array, mx.array]:
        outputs = objective.forward(model, batch)
        loss, weight = objective.loss(model, outputs, batch)
        return {name: value for name, value in outputs.items() if isinstance(value, mx.array)}, loss, weight

    return forward


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


def _join_labels(labels: list[Any]) -> Any:
    if labels[0] is None:
        return None
    if isinstance(labels[0], Mapping):
        return {name: _join_labels([label[name] for label in labels]) for name in labels[0]}
    return mx.array(_join([np.array(label) for label in labels], IGNORE_INDEX))
