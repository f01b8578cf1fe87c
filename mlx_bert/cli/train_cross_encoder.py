"""Training a cross-encoder on pairs, or on documents to be ranked."""

from __future__ import annotations

import argparse
from typing import Any

from mlx_bert.cli.embedding_data import held_out_rows, read_texts, texts_kind
from mlx_bert.cli.train_run import callbacks, model_line, print_summary, run
from mlx_bert.data.labels import LabelMap
from mlx_bert.inference.cross_encoder import CrossEncoder
from mlx_bert.training.cross_encoder import LOSSES, CrossEncoderTrainer


def train(args: argparse.Namespace, settings: Any) -> int:
    """Read, build, train, print."""
    import mlx.core as mx

    kind = pairs_kind(args.train, args, args.loss == "ce" or None)
    loss = args.loss or ("ce" if kind == "labelled_pair" else "bce")
    if loss not in LOSSES:
        raise ValueError(f"[train] expected --loss to be one of {', '.join(LOSSES)} but got {loss!r}.")
    rows, held_out = held_out_rows(read_texts(args.train, kind, args), args, kind, settings.seed)
    names = None
    if loss == "ce":
        names = LabelMap.from_labels([row["label"] for row in (rows if args.eval else [*rows, *held_out])])
        if len(names) < 2:
            raise ValueError(f"[train] expected at least 2 classes in {args.train} but got {list(names.names)}.")
    mx.random.seed(settings.seed)
    model = CrossEncoder.from_pretrained(args.model, num_labels=len(names) if names else 1)
    if names:
        model.model.set_labels(names.to_dict())
    try:
        trainer = CrossEncoderTrainer(
            model,
            settings,
            rows,
            held_out or None,
            loss=loss,
            max_query_length=args.max_query_length,
            callbacks=callbacks(),
            **(args.loss_options or {}),
        )
    except TypeError as error:
        raise ValueError(f"[train] --loss {loss}: {error}. Correct --loss-option.") from None
    lines = {
        "model": model_line(args.model, model.model.bert),
        "loss": loss,
        "evaluation": f"{len(held_out):,} examples" if held_out else "none",
    }
    print_summary(trainer, lines)
    try_it = f"mlx-bert predict --model {settings.output_dir} --input pairs.jsonl"
    return run(trainer, args, {"loss": loss}, try_it)


def pairs_kind(source: str, args: argparse.Namespace, classes: bool | None = None) -> str:
    """What rows a cross-encoder reads: pairs with a class, pairs with a score, or documents of queries.

    Args:
        source: the data.
        args: names of columns.
        classes: whether pairs have classes; None for what stands there: names, or numbers.
    """
    from mlx_bert.data.kinds import number

    kind = texts_kind(source, args)
    if kind in ("ranking", "triplet"):
        return kind
    if classes is None:
        first = read_texts(source, "labelled_pair", args)[0]["label"] if _has_label(source, args) else "0"
        try:
            number(first, "label")
        except ValueError:
            classes = True
    return "labelled_pair" if classes else "scored_pair"


def _has_label(source: str, args: argparse.Namespace) -> bool:
    from mlx_bert.data.sources import read_rows

    return args.label_column is not None or "label" in {*read_rows(source).columns, *(args.columns or {})}
