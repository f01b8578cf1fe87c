"""Several tasks on one encoder: the objective over their heads, and batches of one task each.

Dimension key: B batch, L tokens, C classes of a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_bert.data.collate import IGNORE_INDEX, Arrays
from mlx_bert.data.samplers import BatchIndices, TaskSampler
from mlx_bert.training.objective import loss_weight, regularization


class MultiTaskObjective:
    """Loss and metrics of a ``BertWithHead`` whose head is a ``MultiTaskNLPHead`` of classification tasks.

    A batch has ``labels`` {task: int32 ``(B,)``}, -100 where an example has no label of that task. With one task in the
    labels only its head runs. The loss of a batch is the mean over its examples of their task's weighted loss, so
    batches of one task and mixed ones add up to the same.
    """

    def forward(self, model: Any, batch: Arrays) -> dict[str, mx.array]:
        """``{task}_logits`` ``(B, C)`` for each task in the labels."""
        tasks, mask = list(batch["labels"]), batch.get("attention_mask")
        states = batch.get("hidden_states")
        if states is None:
            ids, types = batch["input_ids"], batch.get("token_type_ids")
            states = model.bert(ids, mask, types, compute_pooling=False).last_hidden_state
        return {f"{task}_logits": model.head(states, mask, task_name=task)["logits"] for task in tasks}

    def loss(self, model: Any, outputs: Mapping[str, Any], batch: Arrays) -> tuple[mx.array, mx.array]:
        """The mean loss over the labels of a batch, each with its task's weight, and what it is a mean over.

        That is :func:`loss_weight`, so that batches of an update add up to one large batch, with class weights too. In
        training, tasks whose heads are frozen do not count, and the penalties of the heads' blocks are added.
        """
        total, count = mx.array(0.0), mx.array(0.0)
        for task, labels in batch["labels"].items():
            head = model.head.task_heads[task]
            if model.training and not tree_flatten(head.trainable_parameters()):
                continue
            loss, weight = head.compute_loss({"logits": outputs[f"{task}_logits"]}, labels), loss_weight(head, labels)
            total = total + mx.where(weight > 0, model.head.task_configs[task].loss_weight * loss * weight, 0.0)
            count = count + weight
        return total / mx.maximum(count, 1e-9) + regularization(model), count

    def metrics(self, model: Any, outputs: Mapping[str, Any], labels: Mapping[str, Any]) -> dict[str, float]:
        """``{task}_loss``, ``{task}_accuracy`` and ``{task}_f1`` (macro, over the classes that occur).

        And the means over tasks of the last two.
        """
        from sklearn.metrics import accuracy_score, f1_score

        found: dict[str, float] = {}
        for task, wanted in labels.items():
            wanted = np.array(wanted)
            rows = np.flatnonzero(wanted != IGNORE_INDEX)
            if not len(rows):
                continue
            logits = np.array(outputs[f"{task}_logits"])[rows]
            loss = model.head.task_heads[task].compute_loss({"logits": mx.array(logits)}, mx.array(wanted[rows]))
            found[f"{task}_loss"] = float(loss)
            predicted = logits.argmax(-1)
            found[f"{task}_accuracy"] = float(accuracy_score(wanted[rows], predicted))
            found[f"{task}_f1"] = float(f1_score(wanted[rows], predicted, average="macro", zero_division=0))
        for name in ("accuracy", "f1"):
            each = [value for key, value in found.items() if key.endswith(f"_{name}")]
            found[name] = float(np.mean(each))
        return found


class TaskBatches:
    """Batches of one task each from a single list of examples of all tasks; see :class:`TaskSampler`.

    Args:
        tasks: the task of each example, or several of them: such an example comes up in the batches of each.
        lengths: its tokens.
        batch_size, strategy, seed: as for :class:`TaskSampler`.
    """

    def __init__(
        self,
        tasks: Sequence[str | Sequence[str]],
        lengths: Sequence[int],
        batch_size: int,
        strategy: str,
        seed: int = 42,
    ) -> None:
        places: dict[str, list[int]] = {}
        for place, named in enumerate(tasks):
            for task in [named] if isinstance(named, str) else named:
                places.setdefault(task, []).append(place)
        self._places = {task: np.array(own) for task, own in places.items()}
        sizes = np.asarray(lengths)
        by_task = {task: sizes[places] for task, places in self._places.items()}
        self._sampler = TaskSampler(by_task, batch_size, strategy, seed)

    def __len__(self) -> int:
        """Batches per epoch, the same for every epoch."""
        return len(self._sampler)

    def batches(self, epoch: int = 0) -> list[BatchIndices]:
        """The batches of an epoch, in order, as places in the list of all examples."""
        return [BatchIndices(self._places[batch.task][batch.indices]) for batch in self._sampler.batches(epoch)]
