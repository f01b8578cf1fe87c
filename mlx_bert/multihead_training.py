"""The training of a ``MultiheadClassifier``: its heads, its phases as ``TrainingArgs``, its run folders.

Dimensions: B batch, L tokens, D hidden size, K classes of a task.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from heads import MultiTaskNLPHead, NLPTaskConfig, NLPTaskType
from mlx_bert.checkpoint import read_json, write_json
from mlx_bert.core import BertCore
from mlx_bert.data.collate import IGNORE_INDEX, token_count, tokenize_examples
from mlx_bert.data.labels import LabelMap
from mlx_bert.data.readers import Example
from mlx_bert.model import BertWithHead
from mlx_bert.multihead_config import MultiheadConfig
from mlx_bert.multihead_data import Splits, data_digest, label_of
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.multi_task import MultiTaskObjective, TaskBatches
from mlx_bert.training.run_folder import BEST_STATE
from mlx_bert.training.setup import describe, differences
from mlx_bert.training.task_sampling import DifficultySampler, TaskDifficulties
from mlx_bert.training.trainer import Trainer, TrainResult

HEADS_ONLY_FACTOR = 10.0  # while the encoder is frozen, the heads learn this much faster
RUN_FILE = "multihead_run.json"  # which data and settings a run folder belongs to
FREE_SETTINGS = ("output_dir", "save_path", "save_every")  # of ``training``: a resumed run may have others


def build_head(
    config: MultiheadConfig,
    labels: Mapping[str, LabelMap],
    class_weights: Mapping[str, Sequence[float]],
    hidden_size: int,
) -> MultiTaskNLPHead:
    """A new head per task.

    Args:
        config: the settings.
        labels: the labels of each task.
        class_weights: {task: weight of each label}; they count if ``loss.use_class_weights`` is set.
        hidden_size: D.
    """
    head, loss = config.head, config.loss
    tasks = [
        NLPTaskConfig(
            task,
            NLPTaskType.TEXT_CLASSIFICATION,
            num_classes=len(names),
            loss_weight=loss.task_weights.get(task, 1.0),
            label_smoothing=loss.label_smoothing,
        )
        for task, names in labels.items()
    ]
    weights = {task: {"class_weights": values} for task, values in class_weights.items()}
    focal = {"loss": "focal", "focal_gamma": loss.focal_gamma} if loss.use_focal_loss else {}
    return MultiTaskNLPHead(
        tasks,
        hidden_size,
        head_kwargs=weights if loss.use_class_weights else None,
        pooling_type=config.pooling,
        hidden_sizes=[int(hidden_size * head.hidden_multiplier)] * head.hidden_layers,
        activation=head.activation,
        dropout_rate=head.dropout,
        use_layer_norm=False,
        use_input_norm=head.input_norm,
        **focal,
    )


class TaskHeads(BertWithHead):
    """The model of a classifier, saved by ``save``, so that a run's ``best_model`` is a classifier with its labels."""

    def __init__(self, bert: BertCore, head: nn.Module, save: Callable[[Path], Any]) -> None:
        super().__init__(bert, head)
        self._save = save

    def save_pretrained(self, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
        """Write the classifier, which has its tokenizer, into a folder."""
        self._save(Path(folder))


def freeze_of(unfreeze_layers: int | None, num_layers: int) -> str:
    """``TrainingArgs.freeze`` of the main phase: ``unfreeze_layers`` top layers train; None for the whole encoder."""
    if unfreeze_layers is None:
        return "none"
    if unfreeze_layers == 0:
        return "backbone"
    return str(num_layers - unfreeze_layers) if unfreeze_layers < num_layers else "embeddings"


def training_args(config: MultiheadConfig, freeze: str, evaluates: bool, folder: Path, progress: bool) -> TrainingArgs:
    """The settings of a run.

    Args:
        config: the classifier's settings.
        freeze: what of the encoder stays fixed in the main phase. All of it: then both phases are one.
        evaluates: whether there are validation examples.
        folder: of the run.
        progress: show progress bars.
    """
    settings, encoder, evaluation = config.training, config.encoder, config.eval
    heads_only = freeze == "backbone"
    freeze_epochs = 0 if heads_only else encoder.freeze_epochs
    heads_only_rate = HEADS_ONLY_FACTOR * settings.learning_rate
    return TrainingArgs(
        output_dir=str(folder),
        epochs=settings.epochs + (encoder.freeze_epochs if heads_only else 0),
        batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate * encoder.lr_multiplier,
        head_learning_rate=heads_only_rate if heads_only else settings.learning_rate,
        optimizer=settings.optimizer,
        weight_decay=settings.weight_decay,
        task_weight_decay=",".join(f"{task}={decay}" for task, decay in settings.task_weight_decay.items()) or None,
        warmup_ratio=settings.warmup_ratio,
        max_grad_norm=settings.max_grad_norm,
        freeze=freeze,
        freeze_epochs=freeze_epochs,
        freeze_learning_rate=heads_only_rate if freeze_epochs else None,
        max_length=settings.max_length,
        dtype=settings.dtype,
        metric=evaluation.metric if evaluates else None,
        best_heads=heads_only and evaluates,
        patience=max(0, evaluation.patience) if evaluates else 0,
        min_delta=evaluation.min_delta,
        save_every=settings.save_every,
        seed=settings.seed,
        progress=progress,
    )


def train_heads(
    model: BertWithHead,
    tokenizer: Tokenizer,
    config: MultiheadConfig,
    labels: Mapping[str, LabelMap],
    splits: Splits,
    args: TrainingArgs,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
) -> TrainResult:
    """Train on batches of one task each, or of mixed tasks if they are drawn by how hard they are.

    Args:
        model, tokenizer, labels: what is trained.
        config: the classifier's settings: how tasks are sampled.
        splits: ``train`` and ``validation`` are used, the latter if it is not empty.
        args: of :func:`training_args`.
        callbacks, resume: as for ``Trainer``.

    Raises:
        ValueError: tasks to be drawn by how hard they are, without validation examples.
    """
    alone = len({example["task"] for example in splits["train"]}) == 1
    sampling = "proportional" if alone else config.task_sampling
    is_dynamic = sampling == "dynamic"
    if is_dynamic and not splits["validation"]:
        raise ValueError(
            "[multihead] expected validation data with task_sampling 'dynamic' but got none. Give some, or val_size."
        )
    train = tokenize_examples(splits["train"], tokenizer, args.max_length)
    tasks = [example["task"] for example in train]
    # In evaluation, every example has a label of every task, so that batches may mix tasks.
    unlabelled = dict.fromkeys(tasks, IGNORE_INDEX)

    def labelled(examples: Sequence[Example], others: Mapping[str, int]) -> list[Example]:
        return [{**row, "labels": {**others, row["task"]: label_of(labels, row)}} for row in examples]

    train = labelled(train, unlabelled if is_dynamic else {})
    held_out = labelled(splits["validation"], unlabelled)
    lengths = [token_count(example) for example in train]
    difficulties = TaskDifficulties(list(unlabelled))
    sampler: Any = (
        DifficultySampler([row["labels"] for row in train], lengths, args.batch_size, args.seed, difficulties)
        if is_dynamic
        else TaskBatches(tasks, lengths, args.batch_size, sampling, args.seed)
    )
    trainer = Trainer(
        model,
        args,
        train,
        held_out or None,
        tokenizer=tokenizer,
        objective=MultiTaskObjective(),
        callbacks=[difficulties, *callbacks],
        sampler=sampler,
    )
    return trainer.train(resume)


# --- run folders: run-1, run-2, ... -----------------------------------------------------------------------------------


def next_run(folder: Path) -> Path:
    """The first of ``run-1``, ``run-2``, ... that is not there."""
    return folder / f"run-{max(_runs(folder), default=0) + 1}"


def added_digest(examples: Sequence[Example], model: nn.Module) -> str:
    """What tells the runs that add a task apart: its examples, and the weights that it is added to."""
    weights = json.dumps(describe(dict(tree_flatten(model.parameters()))))
    return f"{data_digest(examples)} added to {zlib.crc32(weights.encode()):08x}"


def describe_run(folder: Path, data: str, config: MultiheadConfig) -> None:
    """Note in a run's folder what it trains, so that :func:`find_run` finds it.

    Args:
        folder: of the run; it need not be there.
        data: digest of the data.
        config: the settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RUN_FILE, {"data": data, "config": config.to_dict()})


def find_run(folder: Path, data: str, config: MultiheadConfig) -> Path | None:
    """The newest run of the same data; None without any.

    Args:
        folder: of the run folders.
        data: digest of the data.
        config: the settings.

    Raises:
        ValueError: it was begun with other settings.
        FileExistsError: it is complete.
    """
    for _, run in sorted(_runs(folder).items(), reverse=True):
        if not (run / RUN_FILE).is_file() or (saved := read_json(run / RUN_FILE))["data"] != data:
            continue
        before = MultiheadConfig.from_dict(saved["config"])
        if differing := differences(_fixed(before), _fixed(config)):
            raise ValueError(
                f"[multihead] {run} was begun with other settings: {'; '.join(differing)}. Give the same ones, or "
                "train without resume."
            )
        if (run / "final_model").exists() and not (run / BEST_STATE).exists():
            raise FileExistsError(
                f"[multihead] the run in {run} is complete. Load its best_model (final_model without validation "
                "data), or train without resume."
            )
        return run
    return None


def _runs(folder: Path) -> dict[int, Path]:
    paths = {path.name.removeprefix("run-"): path for path in folder.glob("run-*")}
    return {int(number): path for number, path in paths.items() if number.isdecimal()}


def _fixed(config: MultiheadConfig) -> dict[str, Any]:
    """The settings that a resumed run must have alike."""
    values = config.to_dict()
    return {**values, "training": {name: v for name, v in values["training"].items() if name not in FREE_SETTINGS}}
