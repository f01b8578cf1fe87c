"""Training heads of several tasks over one encoder; the result is a ``MultiheadClassifier``."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from typing import Any

from mlx_bert.cli.task_options import TaskSource, read_task_parts, task_labels
from mlx_bert.data.collate import IGNORE_INDEX, token_count, tokenize_examples
from mlx_bert.data.labels import LabelMap, class_weights
from mlx_bert.multihead import MultiheadClassifier
from mlx_bert.multihead_config import METRICS, POOLINGS
from mlx_bert.multihead_training import HEADS_ONLY_FACTOR, TaskHeads
from mlx_bert.training.multi_task import MultiTaskObjective, TaskBatches
from mlx_bert.training.task_sampling import DifficultySampler, TaskDifficulties
from mlx_bert.training.trainer import Trainer

TRAINING_SETTINGS = ("batch_size", "epochs", "weight_decay", "warmup_ratio", "gradient_accumulation_steps",
                     "max_grad_norm", "output_dir", "save_every", "dtype", "seed")  # fmt: skip
LOSS_OPTIONS = ("use_focal_loss", "focal_gamma", "label_smoothing")


def train(args: argparse.Namespace, settings: Any) -> int:
    """Read, build, train, print."""
    from mlx_bert.cli.train_run import callbacks, model_line, print_summary, run

    if args.pair_column:
        raise ValueError("[train] expected no --pair-column with --task multi_task, whose heads read single texts.")
    sources = TaskSource.of(args)
    rows, held_out = read_task_parts(sources, args, settings.seed)
    labels = {task: task_labels(task, rows) for source in sources for task in source.tasks}
    classifier = MultiheadClassifier.new(_config(args, settings, sources), labels, _weights(rows, labels))
    classifier.config.encoder.unfreeze_layers = _trained_layers(settings, classifier.model.bert.get_num_layers())
    length = classifier.config.training.max_length
    examples = tokenize_examples(_labelled(rows, labels, "training data"), classifier.tokenizer, length)
    measured = _labelled(held_out, labels, "evaluation data")
    if measured and settings.metric is None:
        settings = replace(settings, metric="accuracy")
    difficulties = TaskDifficulties(list(labels))
    lengths = [token_count(example) for example in examples]
    if args.task_sampling == "dynamic":
        if not measured:
            raise ValueError("[train] expected evaluation data with --task-sampling dynamic but got none. Give --eval.")
        targets = [example["labels"] for example in examples]
        sampler: Any = DifficultySampler(targets, lengths, settings.batch_size, settings.seed, difficulties)
    else:
        names = [example["source"] for example in examples]
        sampler = TaskBatches(names, lengths, settings.batch_size, args.task_sampling, settings.seed)
    trainer = Trainer(
        TaskHeads(classifier.model.bert, classifier.model.head, classifier.write),
        replace(settings, max_length=length),
        examples,
        measured or None,
        classifier.tokenizer,
        objective=MultiTaskObjective(),
        callbacks=[difficulties, *callbacks()],
        sampler=sampler,
    )
    lines = {
        "model": model_line(args.model, classifier.model.bert),
        "head": f"{len(labels)} tasks, {classifier.config.pooling} pooling, {args.task_sampling} sampling",
        "evaluation": f"{len(held_out):,} examples" if held_out else "none",
    }
    for task, names in labels.items():
        count = sum(row["label"].get(task) is not None for row in rows)
        lines[task] = f"{count:,} examples of {len(names)} classes"
    print_summary(trainer, lines)
    return run(trainer, args)


def _weights(rows: list[dict[str, Any]], labels: dict[str, LabelMap]) -> dict[str, list[float]]:
    counts = {task: Counter(row["label"].get(task) for row in rows) for task in labels}
    return {task: class_weights([counts[task][name] for name in names.names]) for task, names in labels.items()}


def _labelled(rows: list[dict[str, Any]], labels: dict[str, LabelMap], name: str) -> list[dict[str, Any]]:
    """Examples with ``labels`` {task: id or -100} of all tasks."""
    from mlx_bert.data.sources import Problems

    problems, examples = Problems(name), []
    for row in rows:
        try:
            found = {
                task: IGNORE_INDEX if row["label"].get(task) is None else names.index(row["label"][task])
                for task, names in labels.items()
            }
        except ValueError as error:
            problems.add(row["line"], str(error))
            continue
        examples.append({"text": row["text"], "line": row["line"], "source": row["source"], "labels": found})
    problems.raise_if_any()
    return examples


def _trained_layers(settings: Any, count: int) -> int | None:
    """How many top layers of ``count`` the settings train; None for the whole encoder."""
    if settings.unfreeze_layers is not None:
        return settings.unfreeze_layers
    known = {"none": None, "as_is": None, "embeddings": count, "backbone": 0}
    return known[settings.freeze] if settings.freeze in known else count - int(settings.freeze)


def _config(args: argparse.Namespace, settings: Any, sources: list[TaskSource]) -> dict[str, Any]:
    """The classifier's settings from those of the command."""
    from mlx_bert.cli.train_run import encoder_config

    if args.pooling and args.pooling not in POOLINGS:
        raise ValueError(
            f"[train] expected --pooling of {', '.join(POOLINGS)} with several tasks but got {args.pooling}."
        )
    # A classifier's heads learn at ten times its rate while the encoder is frozen, as when a task is added to it later:
    # at the rate that heads have in this run.
    head_rate = settings.freeze_learning_rate or settings.head_learning_rate or 10 * settings.learning_rate
    training = {
        "model_name": args.model,
        "max_length": settings.max_length or 128,
        "learning_rate": head_rate / HEADS_ONLY_FACTOR,
        "val_size": args.eval_size,
        "test_size": 0.0,
        **{name: getattr(settings, name) for name in TRAINING_SETTINGS},
    }
    rate = HEADS_ONLY_FACTOR * settings.learning_rate / head_rate if head_rate else 1.0
    encoder = {"freeze_epochs": settings.freeze_epochs, "lr_multiplier": rate}
    evaluation = {"patience": settings.patience, "min_delta": settings.min_delta}
    if settings.metric in METRICS:
        evaluation["metric"] = settings.metric
    options = dict(args.head_options or {})
    loss = {name: options.pop(name) for name in LOSS_OPTIONS if name in options}
    loss["use_class_weights"] = args.class_weights
    loss["task_weights"] = {task: weight for source in sources for task, weight in source.weights.items()}
    head: dict[str, Any] = {"hidden_layers": 0, **options}
    if args.dropout is not None:
        head["dropout"] = args.dropout
    if args.hidden_sizes:
        sizes = {part.strip() for part in str(args.hidden_sizes).split(",")}
        if len(sizes) != 1 or not min(sizes).isdecimal():
            raise ValueError(f"[train] expected equal --hidden-sizes with several tasks but got {args.hidden_sizes!r}.")
        width = encoder_config(args.model).hidden_size
        head["hidden_layers"] = len(str(args.hidden_sizes).split(","))
        head["hidden_multiplier"] = (int(min(sizes)) + 1e-6) / width
    return {
        "training": training,
        "head": head,
        "encoder": encoder,
        "loss": loss,
        "eval": evaluation,
        "pooling": args.pooling or "mean",
        "task_sampling": args.task_sampling,
    }
