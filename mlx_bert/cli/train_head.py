"""Fine-tuning an encoder with one task head."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from mlx_bert.cli.data_options import read_rows_of
from mlx_bert.cli.embedding_data import read_texts
from mlx_bert.cli.head_data import (
    EMBEDDERS,
    KIND_OF_HEAD,
    METRICS,
    WINDOWED,
    collator_of,
    kind_of_head,
    label_names,
    measured_examples,
    training_examples,
)

WEIGHTED = ("binary_classification", "multiclass_classification", "text_classification", "ensemble",
            "time_series_classification", "ordinal_regression", "multilabel_classification")  # fmt: skip
HEAD_OPTIONS = ("task", "pooling", "hidden_sizes", "dropout", "labels", "class_weights", "crf", "head_options")


def train(args: argparse.Namespace, settings: Any) -> int:
    """Read, build, train, print."""
    from dataclasses import replace

    import mlx.core as mx

    from mlx_bert.cli.train_run import callbacks, label_line, model_line, print_summary, run
    from mlx_bert.data.labels import LabelMap
    from mlx_bert.tokenizer import Tokenizer
    from mlx_bert.training.step import compiles
    from mlx_bert.training.trainer import Trainer

    mx.random.seed(settings.seed)
    source = args.model
    base, folder = _starting_point(args)
    head = str(base.head.head_type) if base else (args.task or "multiclass_classification")
    kind = kind_of_head(head, args.train, args)
    if args.largest_score != 1 and kind != "scored_pair":
        raise ValueError("[train] expected --largest-score with pairs that have a score. Leave it out.")
    rows, held_out, where = read_parts(args, kind, settings.seed)
    # of a part set aside too, which may have the one example of a label; a file for --eval is checked against --train
    named = rows if args.eval and head not in EMBEDDERS else type(rows)([*rows, *held_out], rows.classes)
    names = _names(args, head, kind, named, base)
    labels = None if names is None else LabelMap(tuple(names))
    tokenizer = Tokenizer.from_pretrained(_encoder_folder(folder))
    crf = args.crf if base is None else bool(base.head.config.extra.get("use_crf"))
    examples = training_examples(kind, rows, labels, tokenizer, args, settings.max_length, crf, args.train)
    measured = measured_examples(kind, held_out, labels, tokenizer, args, settings.max_length, args.eval or args.train)
    model = base or _new_model(args, head, kind, labels, examples)
    if held_out and settings.metric is None:
        tagged = any(name.startswith(("B-", "I-")) for name in names or ())
        metric = ("entity_f1" if tagged else "f1_macro") if kind == "tagging" else METRICS.get(kind)
        settings = replace(settings, metric=metric)
    trainer = Trainer(
        model,
        settings,
        examples,
        measured.examples if held_out else None,
        tokenizer,
        collator_of(kind, model, tokenizer, exact=not compiles(settings)),
        measured.objective,
        callbacks(),
    )
    lines = {
        "model": model_line(source, model.bert),
        "head": f"{head}, {model.head.config.pooling_type} pooling" if model.head.POOLED else head,
        "evaluation": f"{len(held_out):,} examples ({where})" if held_out else "none",
    }
    if labels is not None:
        role = "tags" if kind == "tagging" else "label"
        counts = Counter(name for row in rows for name in ([row[role]] if kind == "class" else row[role]))
        lines["labels"] = label_line(counts, names)
    elif kind == "number" and (count := _targets(examples)) > 1:
        lines["targets"] = str(count)
    if kind in WINDOWED:
        lines["texts"] = f"{len(rows):,}, in windows"
    print_summary(trainer, lines, "windows" if kind in WINDOWED else "examples")
    resolved: dict[str, Any] = {"model": source}
    if base is None:
        resolved |= {
            "task": head,
            "labels": None if head in EMBEDDERS else names,
            "dropout": model.head.config.dropout_prob,
        }
        resolved |= {} if kind in WINDOWED else {"pooling": str(model.head.config.pooling_type)}
    return run(trainer, args, resolved, _try_it(head, kind, settings.output_dir))


def read_parts(args: argparse.Namespace, kind: str, seed: int) -> tuple[Any, Any, str]:
    """Training rows, evaluation rows, and where the latter come from."""
    from mlx_bert.data.splits import split_examples

    read = read_texts if kind == "scored_pair" else read_rows_of
    rows = read(args.train, kind, args)
    if args.eval:
        return rows, read(args.eval, kind, args), args.eval
    role = {"class": "label", "joint": "intent"}.get(kind)
    strata = [row[role] if role else None for row in rows]
    split = split_examples(strata, args.eval_size, 0.0, seed=seed)
    parts = [type(rows)([rows[place] for place in places], rows.classes) for places in (split.train, split.validation)]
    return *parts, f"{args.eval_size:g} of {args.train}"


def _starting_point(args: argparse.Namespace) -> tuple[Any, str]:
    """The model to train on, if --model is a fine-tuned folder; and the folder or hub id."""
    from mlx_bert.inference.predict import MODEL_PARTS
    from mlx_bert.model import METADATA, BertWithHead

    folder = Path(args.model)
    found = next((f for f in (folder, *(folder / part for part in MODEL_PARTS)) if (f / METADATA).is_file()), None)
    if found is None:
        return None, args.model
    given = [name for name in HEAD_OPTIONS if getattr(args, name) not in (None, False)]
    if given:
        options = ", ".join(f"--{name.replace('_', '-').removesuffix('s')}" if name == "head_options" else
                            f"--{name.replace('_', '-')}" for name in given)  # fmt: skip
        raise ValueError(
            f"[train] {found} has a head already, but got {options}. Leave them out, or start from an encoder."
        )
    model = BertWithHead.from_pretrained(found)
    if str(model.head.head_type) not in KIND_OF_HEAD:
        raise ValueError(
            f"[train] expected a head of {', '.join(KIND_OF_HEAD)} but {found} has {model.head.head_type}. "
            "Start from an encoder."
        )
    return model, str(found)


def _encoder_folder(source: str) -> Any:
    from mlx_bert.checkpoint import ready_folder

    return Path(source) if (Path(source) / "bert").is_dir() else ready_folder(source)


def _names(args: argparse.Namespace, head: str, kind: str, rows: Any, base: Any) -> list[str] | None:
    """The names of the classes, in the order of their ids."""
    if head == "hierarchical" and not base:
        return _nodes(args)
    if kind not in ("class", "multilabel", "tagging"):
        if args.labels:
            raise ValueError(f"[train] expected no --labels for examples of the kind {kind}. Leave them out.")
        return None
    if head in EMBEDDERS:
        if args.labels:
            raise ValueError(f"[train] expected no --labels with {head}, which does not name classes. Leave them out.")
        return sorted({row["label"] for row in rows})
    if base is not None:
        count = base.head.config.output_size
        return [(base.id2label or {}).get(number, str(number)) for number in range(count)]
    if args.labels:
        given = args.labels.split(",") if isinstance(args.labels, str) else args.labels
        return [str(name).strip() for name in given]
    names = label_names(kind, rows)
    if len(names) < 2 and kind != "multilabel":
        raise ValueError(
            f"[train] expected at least 2 classes in {args.train} but got {names}. Add examples of others."
        )
    return names


def _nodes(args: argparse.Namespace) -> list[str]:
    """The labels of the tree that a hierarchical head is given, in the order of their ids."""
    from heads.hierarchical import LabelTree

    options = args.head_options or {}
    if not isinstance(options.get("hierarchy"), dict):
        raise ValueError(
            "[train] expected the tree of the labels with hierarchical but got none. Give it: --head-option "
            """'hierarchy={"animal": ["cat", "dog"], "plant": ["tree"]}'."""
        )
    tree = LabelTree(options["hierarchy"], options.get("label_to_idx"))
    names = sorted(tree.index, key=tree.index.__getitem__)
    if args.labels and args.labels != names:  # a run's own options have them
        raise ValueError("[train] expected no --labels with hierarchical: they are those of the tree. Leave them out.")
    return names


def _new_model(args: argparse.Namespace, head: str, kind: str, labels: Any, examples: list[dict[str, Any]]) -> Any:
    """An encoder with a new head for these labels."""
    import numpy as np

    from mlx_bert.cli.train_run import encoder_config
    from mlx_bert.data.labels import class_weights, positive_weights
    from mlx_bert.factory import create_bert_with_head

    if head == "binary_classification" and len(labels) != 2:
        raise ValueError(f"[train] expected 2 classes for binary_classification but got {list(labels.names)}.")
    options: dict[str, Any] = {
        "hidden_sizes": _sizes(args.hidden_sizes),
        "dropout_prob": 0.1 if args.dropout is None else args.dropout,
    }
    if kind not in WINDOWED:
        options["pooling_type"] = args.pooling or "mean"
    elif args.pooling:
        raise ValueError(f"[train] expected no --pooling for {head}, which reads every token. Leave it out.")
    if args.crf:
        if kind != "tagging":
            raise ValueError(f"[train] expected token_classification with --crf but got {head}.")
        options["use_crf"] = True
    count = len(labels) if labels is not None else 1
    if head == "regression":
        options["num_targets"] = _targets(examples)
    elif head == "time_series_regression":
        options["forecast_horizon"] = _targets(examples)
    elif head == "text_similarity":
        count = encoder_config(args.model).hidden_size
    if args.class_weights:
        if head not in WEIGHTED:
            raise ValueError(f"[train] expected a task of {', '.join(WEIGHTED)} with --class-weights but got {head}.")
        if kind == "multilabel":
            counts = np.sum([example["labels"] for example in examples], axis=0)
            options["pos_weight"] = positive_weights(counts, len(examples))
        else:
            options["class_weights"] = class_weights(
                np.bincount([example["labels"] for example in examples], minlength=count)
            )
    model = create_bert_with_head(
        bert_name=args.model,
        head_type=head,
        num_labels=count,
        id2label=None if labels is None or head in EMBEDDERS else labels.to_dict(),
        **{**options, **(args.head_options or {})},
    )
    if head in ("regression", "time_series_regression"):
        targets = np.array([np.ravel(example["labels"]) for example in examples], dtype=np.float64)
        spread = np.where(targets.std(axis=0) > 0, targets.std(axis=0), 1.0)
        model.head.set_target_normalization(targets.mean(axis=0).tolist(), spread.tolist())
    return model


def _targets(examples: list[dict[str, Any]]) -> int:
    label = examples[0]["labels"]
    return len(label) if isinstance(label, list) else 1


def _sizes(text: str | None) -> list[int]:
    try:
        return [int(size) for size in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"[train] expected --hidden-sizes such as 384 or 384,128 but got {text!r}.") from None


def _try_it(head: str, kind: str, output: str) -> str | None:
    """A command for the kinds that a text alone is not enough for."""
    if kind in ("question_answering", "multiple_choice"):
        return f"mlx-bert predict --model {output} --input questions.jsonl"
    if head in ("ranking", "text_similarity"):
        return f"mlx-bert predict --model {output} --input {'queries' if head == 'ranking' else 'pairs'}.jsonl"
    return None
