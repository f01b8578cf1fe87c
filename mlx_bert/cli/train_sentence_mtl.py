"""Training a ``SentenceTransformerMTL``: sentence embeddings, and classes of several tasks read from them."""

from __future__ import annotations

import argparse
from typing import Any

from mlx_bert.cli.task_options import TaskSource, read_task_parts, task_labels
from mlx_bert.cli.train_run import callbacks, encoder_config, model_line, print_summary, run
from mlx_bert.mtl import POOLINGS, SentenceTransformerMTL
from mlx_bert.mtl_training import MTLTrainer
from mlx_bert.training.args import given_arguments

MODEL_OPTIONS = ("output_dim", "normalize", "task_attention", "sharing")
LOSS_OPTIONS = ("embedding_weight", "temperature", "sharing_weight", "sampling_temperature")
SAMPLINGS = {"proportional": "shuffle", "sqrt": "sqrt", "equal": "equal", "dynamic": "error_rate"}


def train(args: argparse.Namespace, settings: Any) -> int:
    """Read, build, train, print."""
    import mlx.core as mx

    if args.pair_column:
        raise ValueError("[train] expected no --pair-column with --task sentence_mtl, which reads single texts.")
    if args.pooling not in (None, *POOLINGS):
        raise ValueError(
            f"[train] expected --pooling of {', '.join(POOLINGS)} with sentence_mtl but got {args.pooling}."
        )
    sources = TaskSource.of(args)
    rows, held_out = read_task_parts(sources, args, settings.seed)
    labels = {task: task_labels(task, rows) for source in sources for task in source.tasks}
    weights = {task: weight for source in sources for task, weight in source.weights.items()}
    model_options = _known(args.head_options, MODEL_OPTIONS, "head-option")
    loss_options = _known(args.loss_options, LOSS_OPTIONS, "loss-option")
    mx.random.seed(settings.seed)
    model = SentenceTransformerMTL(
        args.model,
        tasks={task: names.names for task, names in labels.items()},
        pooling=args.pooling or "mean",
        dropout=0.1 if args.dropout is None else args.dropout,
        **{"output_dim": encoder_config(args.model).hidden_size, **model_options},
    )
    trainer = MTLTrainer(
        model, given_arguments(args), weights, sampling=SAMPLINGS[args.task_sampling], evaluate_train=False,
        callbacks=callbacks(), **loss_options,
    ).trainer(_flat(rows), _flat(held_out) or None)  # fmt: skip
    lines = {
        "model": model_line(args.model, model.bert),
        "head": f"embeddings of width {model.output_dim}, {len(labels)} tasks, {model.pooling_type} pooling, "
        f"{args.task_sampling} sampling",
        "evaluation": f"{len(held_out):,} examples" if held_out else "none",
    }
    for task, names in labels.items():
        count = sum(row["label"].get(task) is not None for row in rows)
        lines[task] = f"{count:,} examples of {len(names)} classes"
    print_summary(trainer, lines)
    return run(trainer, args, {"pooling": model.pooling_type, "dropout": model.dropout_prob})


def _known(options: dict[str, Any] | None, known: tuple[str, ...], name: str) -> dict[str, Any]:
    if unknown := sorted(set(options or {}) - set(known)):
        raise ValueError(f"[train] expected --{name} of {', '.join(known)} with sentence_mtl but got {unknown[0]}.")
    return dict(options or {})


def _flat(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``{"text", "line", task: name or None, ...}``."""
    return [{"text": row["text"], "line": row["line"], **row["label"]} for row in rows]
