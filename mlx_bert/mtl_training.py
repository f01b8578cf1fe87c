"""Training a ``SentenceTransformerMTL``: batches that mix tasks, partial labels, sampling by difficulty.

    trainer = MTLTrainer(model, {"output_dir": "topics", "epochs": 3})
    trainer.train([{"text": "Shares rose.", "topic": "Business"}, {"text": "I love it!", "sentiment": "Positive"}])

Dimensions: B batch, L tokens, D width of the embeddings, C classes of a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from heads.losses import cross_entropy, supervised_contrastive_loss
from mlx_bert.data.collate import IGNORE_INDEX, Arrays, token_count, tokenize_examples
from mlx_bert.data.readers import Example
from mlx_bert.mtl import SentenceTransformerMTL, logits_key
from mlx_bert.mtl_data import MAX_LENGTH, label_id
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.feed import Feed, default_collator
from mlx_bert.training.freezing import fixed_tasks
from mlx_bert.training.multi_task import TaskBatches
from mlx_bert.training.objective import evaluate
from mlx_bert.training.task_sampling import DifficultySampler, TaskDifficulties
from mlx_bert.training.train_metrics import TrainMetrics
from mlx_bert.training.trainer import Trainer, TrainResult

SHARES = ("sqrt", "equal")  # of TaskSampler
DIFFICULTIES = ("loss_ratio", "error_rate")
SAMPLINGS = ("shuffle", *SHARES, *DIFFICULTIES)
TASK_METRICS = ("accuracy", "precision", "recall", "f1")
# One rate for encoder and heads, held constant; a checkpoint after each epoch.
DEFAULTS: dict[str, Any] = {
    "learning_rate": 2e-5,
    "head_learning_rate": 2e-5,
    "weight_decay": 0.01,
    "batch_size": 16,
    "epochs": 5,
    "schedule": "constant",
    "warmup_ratio": 0.0,
    "keep_checkpoints": 0,
    "max_length": MAX_LENGTH,
}


class MTLObjective:
    """``sum_t w_t CE_t``, each the mean over a batch's labels of task t, and what is added to it in training.

    Args:
        task_weights: {task: w_t}; 1 for tasks that are not named.
        embedding_weight: factor of the supervised contrastive loss (Khosla et al. 2020) of the embeddings, by the
            labels of each task, mean over the tasks; 0 leaves it out.
        temperature: of that loss.
        sharing_weight: lambda of soft sharing: the sum over pairs of encoders of the squared distance of their weights.
    """

    def __init__(
        self,
        task_weights: Mapping[str, float] | None = None,
        embedding_weight: float = 0.0,
        temperature: float = 0.07,
        sharing_weight: float = 1e-4,
    ) -> None:
        self.task_weights = dict(task_weights or {})
        self.embedding_weight = embedding_weight
        self.temperature = temperature
        self.sharing_weight = sharing_weight

    def forward(self, model: SentenceTransformerMTL, batch: Arrays) -> dict[str, mx.array]:
        """``{task}_logits`` ``(B, C)`` of the tasks in the labels; in training also ``embeddings`` ``(B, D)``."""
        mask, tasks = batch.get("attention_mask"), list(batch["labels"])
        if "hidden_states" in batch:
            outputs = model.from_states(batch["hidden_states"], mask, tasks)
        else:
            outputs = model(batch["input_ids"], mask, batch.get("token_type_ids"))
        wanted = [logits_key(task) for task in tasks] + (["embeddings"] if model.training else [])
        return {name: outputs[name] for name in wanted}

    def weights(self, model: SentenceTransformerMTL, labels: Mapping[str, mx.array] | None) -> mx.array:
        """The labels of each task that trains, and the examples that have any; zeros for None."""
        labels = _counted(model, labels)
        if not labels:
            return mx.zeros(len(model.tasks) + 1)
        known = {task: wanted != IGNORE_INDEX for task, wanted in labels.items()}
        counts = [mx.sum(known[task]) if task in known else mx.array(0) for task in model.tasks]
        return mx.stack([*counts, mx.sum(mx.any(mx.stack(list(known.values())), axis=0))]).astype(mx.float32)

    def loss(
        self, model: SentenceTransformerMTL, outputs: Mapping[str, Any], batch: Arrays
    ) -> tuple[mx.array, mx.array]:
        """The loss of each task, then what is added in training; and :meth:`weights`."""
        labels = _counted(model, batch["labels"])
        losses = [
            self.task_weights.get(task, 1.0) * cross_entropy(outputs[logits_key(task)], labels[task])
            if task in labels
            else mx.array(0.0)
            for task in model.tasks
        ]
        added = mx.array(0.0)
        if model.training and self.embedding_weight and labels:
            each = [
                supervised_contrastive_loss(outputs["embeddings"], wanted, self.temperature)
                for wanted in labels.values()
            ]
            added = added + self.embedding_weight * sum(each) / len(each)
        if model.training and self.sharing_weight:
            added = added + self.sharing_weight * encoder_distance(model)
        return mx.stack([*losses, added]), self.weights(model, labels)

    def metrics(
        self, model: SentenceTransformerMTL, outputs: Mapping[str, Any], labels: Mapping[str, Any]
    ) -> dict[str, float]:
        """``{task}_loss``, ``{task}_accuracy`` and ``{task}_precision``, ``_recall``, ``_f1``, weighted by class size.

        ``accuracy`` and ``f1`` are the means over the tasks. A task without any label has no metrics.
        """
        from sklearn.metrics import accuracy_score, precision_recall_fscore_support

        found: dict[str, float] = {}
        for task, wanted in labels.items():
            wanted, logits = np.array(wanted), np.array(outputs[logits_key(task)])
            rows = np.flatnonzero(wanted != IGNORE_INDEX)
            if not len(rows):
                continue
            wanted, logits = wanted[rows], logits[rows]
            predicted = logits.argmax(-1)
            scores = precision_recall_fscore_support(wanted, predicted, average="weighted", zero_division=0)[:3]
            values = (accuracy_score(wanted, predicted), *scores)
            found[f"{task}_loss"] = float(cross_entropy(mx.array(logits), mx.array(wanted)))
            found |= {f"{task}_{name}": float(value) for name, value in zip(TASK_METRICS, values, strict=True)}
        for name in ("accuracy", "f1"):
            each = [found[f"{task}_{name}"] for task in labels if f"{task}_{name}" in found]
            if each:
                found[name] = float(np.mean(each))
        return found


def encoder_distance(model: SentenceTransformerMTL) -> mx.array:
    """The sum over pairs of encoders of the squared distance of their weights, a scalar; 0 for a single encoder."""
    weights = [dict(tree_flatten(core.encoder.parameters())) for core in model.encoders()]
    total = mx.array(0.0)
    for one, other in combinations(weights, 2):
        for name, array in one.items():
            if mx.issubdtype(array.dtype, mx.floating):
                total = total + mx.sum(mx.square(array.astype(mx.float32) - other[name].astype(mx.float32)))
    return total


def _counted(model: SentenceTransformerMTL, labels: Mapping[str, mx.array] | None) -> dict[str, mx.array]:
    """In training, only the labels of tasks whose heads train (``freeze_tasks``)."""
    fixed = fixed_tasks(model) if model.training else set()
    return {task: wanted for task, wanted in (labels or {}).items() if task not in fixed}


class MTLTrainer:
    """Trains a model on sentences with labels of any of its tasks.

    An example is ``{"text": ..., task: label, ...}``, a label being an id, a name, or None (or absent) where there is
    none. What ``MTLDataProcessor.prepare_data`` returns is taken as well.

    Args:
        model: it has the best weights after training (the last ones without validation examples).
        args: settings; a mapping replaces single ones of the defaults: rate 2e-5, batch 16, 5 epochs, all
            checkpoints (``checkpoint_epoch_<n>``).
        task_weights, embedding_weight, temperature, sharing_weight: see :class:`MTLObjective`.
        sampling: ``"shuffle"`` takes every example once an epoch; ``"sqrt"`` and ``"equal"`` take more of tasks with
            few labels (see :class:`TaskBatches`); ``"loss_ratio"`` and ``"error_rate"`` draw a task by its validation
            loss over that of the first epoch, or by 1 - accuracy (see :class:`DifficultySampler`).
        sampling_temperature: see :class:`DifficultySampler`.
        evaluate_train: also measure the training examples at each epoch's end, which costs a pass over them.
        callbacks: as for ``Trainer``.

    Raises:
        ValueError: an unknown sampling, or weights of an unknown task.
    """

    def __init__(
        self,
        model: SentenceTransformerMTL,
        args: TrainingArgs | Mapping[str, Any] | None = None,
        task_weights: Mapping[str, float] | None = None,
        embedding_weight: float = 0.0,
        temperature: float = 0.07,
        sharing_weight: float = 1e-4,
        sampling: str = "shuffle",
        sampling_temperature: float = 1.0,
        evaluate_train: bool = True,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        if sampling not in SAMPLINGS:
            raise ValueError(f"[mtl] expected sampling to be one of {', '.join(SAMPLINGS)} but got {sampling!r}.")
        if unknown := sorted(set(task_weights or {}) - set(model.tasks)):
            raise ValueError(f"[mtl] task_weights names {unknown}, but the tasks are {', '.join(model.tasks)}.")
        for name, value in (("temperature", temperature), ("sampling_temperature", sampling_temperature)):
            if value <= 0:
                raise ValueError(f"[mtl] expected {name} above 0 but got {value}.")
        self.model = model
        self.args = args if isinstance(args, TrainingArgs) else TrainingArgs.from_dict({**DEFAULTS, **(args or {})})
        if model.sharing == "soft":
            if self.args.freeze == "embeddings":
                raise ValueError("[mtl] expected freeze none, backbone or n with soft sharing but got 'embeddings'.")
            self.args = replace(self.args, cache_encoder=False)  # the cache holds one encoder's outputs
        self.objective = MTLObjective(task_weights, embedding_weight, temperature, sharing_weight)
        self.sampling = sampling
        self.sampling_temperature = sampling_temperature
        self.evaluate_train = evaluate_train
        self.callbacks = list(callbacks)
        self.result: TrainResult | None = None

    def train(
        self,
        train_examples: Sequence[Example] | Mapping[str, mx.array],
        validation_examples: Sequence[Example] | Mapping[str, mx.array] | None = None,
        resume: Any = False,
    ) -> dict[str, list[dict[str, float]]]:
        """Train.

        Args:
            train_examples, validation_examples: see the class.
            resume: as for ``Trainer.train``.

        Returns:
            ``train_metrics`` and ``val_metrics``: a dict per epoch with ``loss`` and, per task, ``{task}_loss``,
            ``{task}_accuracy``, ``{task}_precision``, ``{task}_recall`` and ``{task}_f1``; ``self.result`` has more.

        Raises:
            ValueError: an unknown label or task, an example without any label, or a sampling that has no validation
                examples to go by.
        """
        self.result = self.trainer(train_examples, validation_examples).train(resume)
        self.model.eval()
        epochs = [record for record in self.result.history["epochs"] if record["epoch"] == int(record["epoch"])]
        return {"train_metrics": _history(epochs, "train_"), "val_metrics": _history(epochs, "eval_")}

    def trainer(
        self,
        train_examples: Sequence[Example] | Mapping[str, mx.array],
        validation_examples: Sequence[Example] | Mapping[str, mx.array] | None = None,
    ) -> Trainer:
        """What :meth:`train` runs, ready to be started; arguments and errors are the same."""
        if self.sampling in DIFFICULTIES and validation_examples is None:
            raise ValueError(f"[mtl] expected validation_examples with sampling {self.sampling!r} but got none.")
        train = self._prepared(train_examples)
        validation = None if validation_examples is None else self._prepared(validation_examples)
        callbacks: list[Callback] = [TrainMetrics(train)] if self.evaluate_train else []
        labels, lengths = [row["labels"] for row in train], [token_count(row) for row in train]
        size, seed = self.args.batch_size, self.args.seed
        sampler: Any = None
        if self.sampling in SHARES:
            labelled = [[task for task, known in row.items() if known != IGNORE_INDEX] for row in labels]
            sampler = TaskBatches(labelled, lengths, size, self.sampling, seed)
        elif self.sampling in DIFFICULTIES:
            difficulties = TaskDifficulties(list(self.model.tasks), self.sampling)
            sampler = DifficultySampler(labels, lengths, size, seed, difficulties, self.sampling_temperature)
            callbacks.append(difficulties)
        return Trainer(
            self.model,
            self.args,
            train,
            validation,
            tokenizer=self.model.tokenizer,
            objective=self.objective,
            callbacks=[*callbacks, *self.callbacks],
            sampler=sampler,
        )

    def evaluate(self, examples: Sequence[Example] | Mapping[str, mx.array]) -> dict[str, float]:
        """``loss`` and the metrics of each task, as in :meth:`train`, of the model as it is."""
        rows, tokenizer = self._prepared(examples), self.model.tokenizer
        feed = Feed(self.args, rows, rows, tokenizer, default_collator(self.model, tokenizer))
        return evaluate(self.model.eval(), self.objective, feed.eval_batches())[0]

    def _prepared(self, examples: Sequence[Example] | Mapping[str, mx.array]) -> list[Example]:
        """Examples of ids, each with ``labels`` {task: id or -100} of all tasks."""
        maps = self.model.label_maps
        rows = _rows_of(examples, list(maps)) if isinstance(examples, Mapping) else list(examples)
        prepared = []
        for number, row in enumerate(rows):
            labels = {task: label_id(classes, task, row.get(task)) for task, classes in maps.items()}
            if set(labels.values()) == {IGNORE_INDEX}:
                raise ValueError(f"[mtl] example {number} has no label of {', '.join(maps)}. Remove or label it.")
            prepared.append({**{key: value for key, value in row.items() if key not in maps}, "labels": labels})
        if any("input_ids" not in row for row in prepared):
            if self.model.tokenizer is None:
                raise ValueError("[mtl] expected a tokenizer for texts but the model has none. Set model.tokenizer.")
            prepared = tokenize_examples(prepared, self.model.tokenizer, self.args.max_length)
        return prepared


def _history(records: Sequence[Mapping[str, Any]], prefix: str) -> list[dict[str, float]]:
    rows = [{key.removeprefix(prefix): row[key] for key in row if key.startswith(prefix)} for row in records]
    return [row for row in rows if row]


def _rows_of(arrays: Mapping[str, mx.array], tasks: Sequence[str]) -> list[Example]:
    """Examples, without padding, of what ``MTLDataProcessor.prepare_data`` returned."""
    given = [task for task in tasks if f"{task}_labels" in arrays]
    ids, mask, types = (np.array(arrays[name]) for name in ("input_ids", "attention_mask", "token_type_ids"))
    labels = {task: np.array(arrays[f"{task}_labels"]) for task in given}
    rows = []
    for number, real in enumerate(mask.astype(bool)):
        ids_of = {"input_ids": ids[number][real], "token_type_ids": types[number][real]}
        known = {task: int(values[number]) for task, values in labels.items() if values[number] != IGNORE_INDEX}
        rows.append({**ids_of, **known})
    return rows
