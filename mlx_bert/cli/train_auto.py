"""Training with everything that is not given inferred from the data: task, columns, head and settings."""

from __future__ import annotations

import argparse
from typing import Any

from mlx_bert.cli import train_head
from mlx_bert.cli.train_run import encoder_config
from mlx_bert.data.analysis import DatasetAnalysis, analyze_dataset
from mlx_bert.training.args import TrainingArgs, given_arguments

HEADS = {"time_series": "time_series_regression"}  # kinds of task whose head has another name
FREEZING = ("freeze", "unfreeze_layers", "lora", "gradual_unfreezing")


def train(args: argparse.Namespace, settings: Any) -> int:
    """Look at the data, say what follows from them, and train by it."""
    from mlx_bert.training.distributed import World

    if args.label_column and "," in args.label_column:
        raise ValueError("[train] expected one --label-column with --task auto but got several. Name the task.")
    analysis = analyze_dataset(args.train, args.label_column)
    args.task = HEADS.get(analysis.head_type, analysis.head_type)
    args.label_column = analysis.target_column
    if args.text_column is None and args.task != "ranking":
        args.text_column = _text_column(args, analysis)
    given = given_arguments(args)
    freezes = any(name in given for name in FREEZING)
    layers = None if freezes else encoder_config(args.model).num_hidden_layers
    settings = TrainingArgs.from_dict({**analysis.recommended_training_settings(layers), **given})
    options = analysis.recommended_head_options()
    if args.dropout is None:
        args.dropout = options["dropout_prob"]
    if args.pooling is None:
        args.pooling = options.get("pooling_type")
    args.class_weights = args.class_weights or bool({"class_weights", "pos_weight"} & set(options))
    if World().is_main:
        print(analysis)
        print(f"used: --task {args.task} --text-column {args.text_column} --label-column {args.label_column} "
              f"--batch-size {settings.batch_size} --learning-rate {settings.learning_rate} --freeze {settings.freeze} "
              f"--dropout {args.dropout:g}{' --class-weights' if args.class_weights else ''}; give others to "
              "replace them\n")  # fmt: skip
    return train_head.train(args, settings)


def _text_column(args: argparse.Namespace, analysis: DatasetAnalysis) -> str:
    """The column with a customary name, else the column of texts that are longest."""
    from mlx_bert.data.kinds import TEXT
    from mlx_bert.data.readers import read_table

    rows = read_table(args.train)
    present = {column for row in rows for column in row}
    for name in TEXT.columns:
        if name in present and name not in analysis.target_columns:
            return name
    if not analysis.text_columns:
        raise ValueError(f"[train] found no column of texts in {args.train}. Name it with --text-column.")
    return max(analysis.text_columns, key=lambda column: sum(len(str(row.get(column) or "")) for row in rows))
