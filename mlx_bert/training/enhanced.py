"""``EnhancedTrainer``: the training loop behind a signature of data sets and step counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from heads import BaseKaggleHead
from mlx_bert.data.readers import Example
from mlx_bert.model import BertWithHead
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.feed import Feed, default_collator
from mlx_bert.training.objective import HeadObjective, evaluate
from mlx_bert.training.trainer import Trainer, TrainResult

ID_KEYS = ("input_ids", "attention_mask", "token_type_ids")
Dataset = Iterable[Mapping[str, Any]] | Mapping[str, Any]


class _Run(Trainer):
    history_file = "training_history.json"


class EnhancedTrainer:
    """Trains any ``BertWithHead``; only what is not frozen in it moves.

    Args:
        model: the model.
        output_dir: gets ``checkpoint_N/`` after N updates, ``best_model/`` and ``final_model/``, each with the
            optimiser's state unless ``save_optimizer=False`` is among the settings, and ``training_history.json``.
        num_epochs: passes over the data.
        batch_size: examples per forward pass; the data are batched anew, by length.
        learning_rate: peak rate of encoder and head.
        weight_decay: of AdamW; never on biases and norms.
        warmup_steps: updates in which the rate rises; then it falls to 0 along a cosine.
        gradient_accumulation_steps: batches per update.
        max_grad_norm: bound of the gradient's global norm.
        eval_steps, save_steps: updates between evaluations and between checkpoints.
        early_stopping_patience: evaluations without improvement before the run stops; 0 never stops.
        seed: of order and dropout.
        tokenizer: for data of texts; saved with the model.
        callbacks: see :class:`mlx_bert.training.callbacks.Callback`.
        settings: further fields of :class:`TrainingArgs`.

    Example:
        >>> trainer = EnhancedTrainer(model, "output", num_epochs=3)
        >>> result = trainer.train(train_dataset, val_dataset)
    """

    def __init__(
        self,
        model: BertWithHead,
        output_dir: str | Path,
        num_epochs: int = 3,
        batch_size: int = 16,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.01,
        warmup_steps: int = 100,
        gradient_accumulation_steps: int = 1,
        max_grad_norm: float = 1.0,
        eval_steps: int = 50,
        save_steps: int = 100,
        early_stopping_patience: int = 0,
        seed: int = 42,
        tokenizer: Tokenizer | None = None,
        callbacks: Sequence[Callback] = (),
        **settings: Any,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.callbacks = callbacks
        own = {
            "output_dir": str(output_dir),
            "epochs": num_epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "head_learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "warmup_steps": warmup_steps,
            "gradient_accumulation_steps": gradient_accumulation_steps,
            "max_grad_norm": max_grad_norm,
            "eval_every": eval_steps,
            "save_every": save_steps,
            "patience": early_stopping_patience,
            "save_optimizer": True,
            "seed": seed,
        }
        self.args = TrainingArgs.from_dict({**own, **settings})

    def train(
        self, train_dataset: Dataset, val_dataset: Dataset | None = None, resume: bool | str | Path = False
    ) -> TrainResult:
        """Train.

        Args:
            train_dataset: examples or batches, as :func:`examples_of` takes them.
            val_dataset: the same; None for no evaluation.
            resume: True or a checkpoint's folder continues a run that was cut off, exactly.

        Raises:
            ValueError: data that are neither examples nor batches, or are empty.
            FileExistsError: ``output_dir`` has results of another run.
        """
        train, evaluation = (data if data is None else examples_of(data, self.model.head)
                             for data in (train_dataset, val_dataset))  # fmt: skip
        run = _Run(self.model, self.args, train, evaluation, self.tokenizer, callbacks=self.callbacks)
        return run.train(resume)

    def evaluate(self, dataset: Dataset) -> dict[str, float]:
        """Loss and metrics of the model as it is, before or after training.

        Raises:
            ValueError: data that are neither examples nor batches, or are empty.
        """
        examples, objective = examples_of(dataset, self.model.head), HeadObjective.of(self.model)
        collate = default_collator(self.model, self.tokenizer)
        feed = Feed(self.args, examples, examples, self.tokenizer, collate, needs_labels=objective.needs_labels)
        return evaluate(self.model.eval(), objective, feed.eval_batches())[0]


def examples_of(dataset: Dataset, head: BaseKaggleHead | None = None) -> list[Example]:
    """Single examples from whatever a data set holds.

    Args:
        dataset: an iterable of examples (``input_ids (L,)``, or ``text``) or of batches (``input_ids (B, L)``,
            ``labels (B, ...)``), or one dict of arrays with all examples; where an example is a group of N texts, of
            examples ``(N, L)`` or batches ``(B, N, L)``. Padding, where ``attention_mask`` is 0, is taken off; the
            trainer pads anew.
        head: says whether ``(N, L)`` is a group where labels don't show it; None for single texts.

    Raises:
        ValueError: an item that is none of these.
    """
    items = [dataset] if isinstance(dataset, Mapping) else list(dataset)
    examples: list[Example] = []
    for number, item in enumerate(items):
        if not isinstance(item, Mapping) or not ({"input_ids", "text"} & item.keys()):
            shown = sorted(item) if isinstance(item, Mapping) else type(item).__name__
            raise ValueError(
                f"[EnhancedTrainer] expected dicts with input_ids or text but item {number} is {shown}. "
                "Give examples or batches with input_ids, attention_mask and labels."
            )
        arrays = {key: _array(value) for key, value in item.items() if value is not None}
        spans = str(getattr(head, "head_type", None)) == "question_answering"
        if _is_batch(arrays, head):
            examples += [
                _unpadded({key: _row(value, row) for key, value in arrays.items()}, spans)
                for row in range(len(arrays["input_ids"]))
            ]
        else:
            examples.append(_unpadded(arrays, spans))
    return examples


def _is_batch(item: Example, head: BaseKaggleHead | None) -> bool:
    """Whether an item holds several examples; ``(N, L)`` may be a batch of N texts, or one group of N."""
    ids, labels = item.get("input_ids"), item.get("labels")
    depth = 0 if ids is None else 1 + _depth(ids)
    if depth != 2:
        return depth == 3
    if labels is None:
        return head is None or (head.needs_labels and not head.takes_groups)
    return not (getattr(head, "takes_groups", False) or (not isinstance(labels, Mapping) and np.ndim(labels) == 0))


def _depth(ids: Any) -> int:
    """Axes of what the first entry of ids is; rows may have different lengths."""
    return np.ndim(ids[0]) if isinstance(ids, list) else np.ndim(ids) - 1


def _array(value: Any) -> Any:
    """numpy for arrays and lists, a list of it for rows of different lengths; anything else as it is."""
    if isinstance(value, Mapping):
        return {key: _array(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple) and len({np.shape(entry) for entry in value}) > 1:
        return [np.array(entry) for entry in value]
    return value if isinstance(value, str | int | float) else np.array(value)


def _row(value: Any, row: int) -> Any:
    return {key: entry[row] for key, entry in value.items()} if isinstance(value, Mapping) else value[row]


def _unpadded(example: Example, spans: bool = False) -> Example:
    """An example without the tokens that its ``attention_mask`` marks as padding; labels of tokens shrink with it.

    With ``spans``, labels are positions of tokens, which count from the first real one then.
    """
    mask = example.pop("attention_mask", None)
    if "input_ids" not in example:
        return example
    ids, labels = example["input_ids"], example.get("labels")
    if mask is None:
        mask = [np.ones(len(row)) for row in ids] if _depth(ids) else np.ones(len(ids))
    if not any(np.any(row) for row in mask):
        raise ValueError(
            "[EnhancedTrainer] expected at least one real token per example but got only padding. Check it."
        )
    keys = [key for key in ID_KEYS if key in example]
    if _depth(ids):  # a group: a list of rows is what the collators take
        rows = {key: [np.asarray(row)[np.asarray(own) > 0] for row, own in zip(example[key], mask, strict=True)]
                for key in keys}  # fmt: skip
        return {**example, **rows}
    real = np.asarray(mask) > 0

    def shrunk(value: Any) -> Any:
        if spans:
            return np.where(np.asarray(value) >= 0, value - real.argmax(), value)
        if isinstance(value, Mapping):
            return {key: shrunk(entry) for key, entry in value.items()}
        return value[real] if isinstance(value, np.ndarray) and value.shape == real.shape else value

    own = {"labels": shrunk(labels)} if labels is not None else {}
    return {**example, **own, **{key: np.asarray(example[key])[real] for key in keys}}
