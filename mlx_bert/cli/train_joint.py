"""Training the intent of each text and the tags of its words together, over one encoder."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from mlx_bert.cli.data_options import read_rows_of
from mlx_bert.cli.train_head import read_parts
from mlx_bert.cli.train_run import callbacks, label_line, model_line, print_summary, run

DROPOUT = 0.1


def train(args: argparse.Namespace, settings: Any) -> int:
    """Read, build, train, print."""
    import mlx.core as mx

    from mlx_bert.checkpoint import ready_folder
    from mlx_bert.core import BertCore
    from mlx_bert.data.labels import LabelMap
    from mlx_bert.joint import OUTSIDE, JointIntentNER, joint_trainer
    from mlx_bert.tokenizer import Tokenizer
    from mlx_bert.training.args import given_arguments

    rows, held_out, where = read_parts(args, "joint", settings.seed)
    everything = [*rows, *held_out]
    intents = LabelMap.from_labels([row["intent"] for row in everything]).names
    tags = sorted({tag for row in everything for tag in row["tags"]} - {OUTSIDE})
    if len(intents) < 2 or not tags:
        raise ValueError(
            f"[train] expected at least 2 intents and a tag besides {OUTSIDE} in {args.train} but got "
            f"{len(intents)} and {len(tags)}. Add examples."
        )
    mx.random.seed(settings.seed)
    folder = ready_folder(args.model)
    dropout = DROPOUT if args.dropout is None else args.dropout
    model = JointIntentNER(
        BertCore.from_pretrained(folder), Tokenizer.from_pretrained(folder), intents, [OUTSIDE, *tags], dropout,
        **_options(args),
    )  # fmt: skip
    trainer = joint_trainer(model, rows, held_out or None, given_arguments(args), False, callbacks())
    tagged = Counter(tag for row in rows for tag in row["tags"])
    lines = {
        "model": model_line(args.model, model.bert),
        "evaluation": f"{len(held_out):,} examples ({where})" if held_out else "none",
        "intents": label_line(Counter(row["intent"] for row in rows), list(intents)),
        "tags": label_line(tagged, [OUTSIDE, *tags]),
    }
    print_summary(trainer, lines)
    return run(trainer, args, {"dropout": dropout})


def _options(args: argparse.Namespace) -> dict[str, Any]:
    options = dict(args.head_options or {})
    if unknown := sorted(set(options) - {"sentence"}):
        raise ValueError(f"[train] expected --head-option sentence=pooler or sentence=cls but got {unknown[0]}.")
    return options


def joint_report(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Losses, accuracies and the F1 of entities, and the reports of the intents and of each type of entity."""
    from mlx_bert.cli.reports import class_report, entity_report
    from mlx_bert.joint import JointIntentNER, evaluate_joint

    model = JointIntentNER.from_pretrained(folder)
    rows = read_rows_of(args.data, "joint", args)
    ids = {name: number for number, name in enumerate(model.intents)}
    options = {"batch_size": args.batch_size, "max_length": args.max_length}
    metrics = evaluate_joint(model, rows, **options)  # it raises for names that the model does not know
    found = model.predict([row["text"] for row in rows], **options)
    report = class_report([ids[row["intent"]] for row in found], [ids[row["intent"]] for row in rows], model.intents)
    entities = {}
    if any(tag.startswith(("B-", "I-")) for tag in model.tags):
        entities["entities"] = entity_report([row["tags"] for row in found], [row["tags"] for row in rows])
    return {"examples": len(rows), "metrics": metrics, **report, **entities}
