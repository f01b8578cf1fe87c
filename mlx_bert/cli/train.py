"""Fine-tune an encoder with a task head on labelled texts.

Data are CSV or TSV files with a header line, or JSON Lines, in UTF-8. Class names may be any text; with
--head multilabel_classification a cell holds names joined by |, with --head regression a number.

examples:
  mlx-bert train --model minilm --train reviews.csv --output reviews-model
  mlx-bert train --model minilm --train a.jsonl --eval b.jsonl --text-column review --label-column stars \\
      --head ordinal_regression --epochs 8 --learning-rate 1e-4 --patience 2 --output stars-model
  mlx-bert train --model minilm --train big.csv --freeze backbone --output quick-model   (the head alone: seconds)
  mlx-bert train --model minilm --train big.csv --lora "*.attention.*" --learning-rate 1e-3 --output adapted-model
  mlx-bert train --model minilm --train reviews.csv --output reviews-model --resume       (after an interruption)

A TOML file can hold any of the options, named as below without the dashes (learning-rate = 1e-4); options on the
command line win over it:
  mlx-bert train --config run.toml --epochs 3

Ctrl-C writes a checkpoint and stops; the same command with --resume continues exactly where it was.
The output folder holds best_model/ and final_model/ (both for mlx-bert predict and evaluate), checkpoints and
history.json."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from mlx_bert.training.args import TrainingArgs, add_arguments, given_arguments

# What a label is for each head that learns from a text and a label.
LABEL_KINDS = {
    "multiclass_classification": "class",
    "binary_classification": "class",
    "text_classification": "class",
    "ordinal_regression": "class",
    "multilabel_classification": "multilabel",
    "regression": "number",
}
POOLINGS = ("cls", "mean", "max", "attention", "weighted_mean", "last")


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mlx-bert train``; the training settings come from ``TrainingArgs``."""
    data = parser.add_argument_group("model and data")
    data.add_argument("--config", action=TomlOptions, metavar="FILE", help="TOML file with options")
    data.add_argument("--model", help="folder or hub id of an encoder, or a fine-tuned folder to train on (required)")
    data.add_argument("--train", metavar="FILE", help="labelled texts: .csv, .tsv or .jsonl (required)")
    data.add_argument("--eval", metavar="FILE", help="labelled texts to evaluate on; without it a part of --train")
    data.add_argument(
        "--eval-size", type=float, default=0.1, metavar="PART",
        help="part of --train set aside when --eval is not given; 0 for none (default: 0.1)",
    )  # fmt: skip
    add_data_arguments(data)
    head = parser.add_argument_group("head")
    head.add_argument(
        "--head", choices=LABEL_KINDS, metavar="HEAD",
        help=f"{', '.join(LABEL_KINDS)} (default: multiclass_classification)",
    )  # fmt: skip
    head.add_argument("--pooling", choices=POOLINGS, help="how token states become one vector (default: mean)")
    head.add_argument(
        "--hidden-sizes",
        metavar="SIZES",
        help="widths of hidden blocks, such as 384 or 384,128 (default: none, linear)",
    )
    head.add_argument("--dropout", type=float, metavar="PROBABILITY", help="dropout of the head (default: 0.1)")
    head.add_argument(
        "--labels", metavar="NAMES", help="class names in order, joined by commas; without it those of the data, sorted"
    )
    head.add_argument("--class-weights", action="store_true", help="weight rare classes more in the loss")
    run = parser.add_argument_group("training")
    run.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in --output")
    add_arguments(run)


class TomlOptions(argparse.Action):
    """Takes the options of a TOML file, except those that the command line gives itself."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        import tomllib

        try:
            options = tomllib.loads(Path(values).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise argparse.ArgumentError(self, f"{values} cannot be read: {error}. Give a TOML file.") from None
        known = {text.lstrip("-"): action for action in parser._actions for text in action.option_strings}
        for name, value in options.items():
            action = known.get(name.replace("_", "-"))
            if action is None or action.dest in ("help", "config"):
                raise argparse.ArgumentError(self, f"{values} has an unknown option {name!r}. Correct its name.")
            if action.choices and value not in action.choices:
                wanted = ", ".join(action.choices)
                raise argparse.ArgumentError(self, f"expected {name} to be one of {wanted} but got {value!r}.")
            # what stands before --config on the command line stays; what comes after it wins by itself
            if getattr(namespace, action.dest, argparse.SUPPRESS) == action.default:
                setattr(namespace, action.dest, value)


def add_data_arguments(group: Any, label: bool = True) -> None:
    """The options that name columns, shared by the verbs that read data."""
    group.add_argument("--text-column", default="text", metavar="NAME", help="column of the text (default: text)")
    group.add_argument("--pair-column", metavar="NAME", help="column of the second text, for pairs")
    if label:
        group.add_argument(
            "--label-column", default="label", metavar="NAME", help="column of the label (default: label)"
        )
        group.add_argument(
            "--label-separator", default="|", metavar="TEXT", help="joins the names of several labels (default: |)"
        )


def main(args: argparse.Namespace) -> int:
    """Train, print what happens, and return the exit code."""
    for name in ("model", "train"):
        if not getattr(args, name):
            raise ValueError(f"[train] expected --{name} but got none. Give it, or {name} in the file of --config.")
    settings = TrainingArgs(**given_arguments(args))
    import mlx.core as mx

    from mlx_bert.tokenizer import Tokenizer
    from mlx_bert.training.callbacks import EpochTable
    from mlx_bert.training.trainer import Trainer, TrainingInterrupted

    mx.random.seed(settings.seed)
    base, kind = _starting_point(args)
    train, held_out, labels, source = _read(args, kind, base, settings.seed)
    model = base or _new_model(args, kind, labels, train)
    tokenizer = Tokenizer.from_pretrained(_encoder_folder(args.model))
    table = EpochTable(("accuracy", "f1_macro", "rmse", "r2", "qwk"))
    trainer = Trainer(model, settings, train, held_out or None, tokenizer, callbacks=[table])
    speaks = trainer.world.is_main  # of the ranks that train together
    if speaks:
        _print_summary(args, model, trainer, train, held_out, labels, kind, source)
    try:
        result = trainer.train(resume=args.resume)
    except TrainingInterrupted as stopped:
        if speaks:
            print(f"\nStopped. The run is saved in {stopped.checkpoint}. Continue with the same command and --resume.",
                  file=sys.stderr)  # fmt: skip
        trainer.world.barrier()  # the launcher ends the others when one ends: let it be said first
        return 130
    if speaks:
        _print_result(result)
    return 0


def _starting_point(args: argparse.Namespace) -> tuple[Any, str]:
    """The model to train on, if --model is a fine-tuned folder; and what its labels are."""
    from mlx_bert.inference.predict import MODEL_PARTS
    from mlx_bert.model import METADATA, BertWithHead

    folder = Path(args.model)
    found = next((f for f in (folder, *(folder / part for part in MODEL_PARTS)) if (f / METADATA).is_file()), None)
    if found is None:
        return None, LABEL_KINDS[args.head or "multiclass_classification"]
    args.model = str(found)
    given = [name for name in ("head", "pooling", "hidden_sizes", "dropout", "labels", "class_weights")
             if getattr(args, name) not in (None, False)]  # fmt: skip
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(
            f"[train] {found} has a head already, but got {options}. Leave them out, or start from an encoder."
        )
    model = BertWithHead.from_pretrained(found)
    if model.head.head_type not in LABEL_KINDS:
        raise ValueError(f"[train] expected a head of {', '.join(LABEL_KINDS)} but {found} has {model.head.head_type}.")
    return model, LABEL_KINDS[model.head.head_type]


def _encoder_folder(source: str) -> Any:
    from mlx_bert.checkpoint import ready_folder

    return Path(source) if (Path(source) / "bert").is_dir() else ready_folder(source)


def _read(args: argparse.Namespace, kind: str, base: Any, seed: int) -> tuple[list, list, Any, str]:
    """Training examples, evaluation examples, label map and where the evaluation examples come from."""
    from mlx_bert.data.labels import LabelMap, encode_labels
    from mlx_bert.data.splits import split_examples

    train = read_labelled(args.train, args, kind)
    held_out = read_labelled(args.eval, args, kind) if args.eval else []
    labels = None
    if kind != "number":
        if base is not None:
            labels = (
                LabelMap.from_dict(base.id2label) if base.id2label else LabelMap(range(base.head.config.output_size))
            )
        elif args.labels:
            labels = LabelMap(tuple(name.strip() for name in args.labels.split(",")))
        else:
            labels = LabelMap.from_labels([example["label"] for example in train])
            if len(labels) < 2 and kind == "class":
                raise ValueError(f"[train] expected at least 2 classes in {args.train} but got {list(labels.names)}.")
    if labels is None:
        train, held_out = ([{**e, "labels": e["label"]} for e in part] for part in (train, held_out))
    else:
        train = encode_labels(train, labels, kind == "multilabel", args.train)
        held_out = encode_labels(held_out, labels, kind == "multilabel", str(args.eval))
    if args.eval:
        return train, held_out, labels, args.eval
    strata = [str(example["label"]) if kind == "class" else None for example in train]
    split = split_examples(strata, args.eval_size, 0.0, seed=seed)
    return (
        [train[index] for index in split.train],
        [train[index] for index in split.validation],
        labels,
        f"{args.eval_size:g} of {args.train}",
    )


def read_labelled(path: str, args: argparse.Namespace, kind: str) -> list[dict[str, Any]]:
    """The checked examples of a file, by the columns that the command line names."""
    from mlx_bert.data.readers import read_examples

    return read_examples(path, args.text_column, args.label_column, args.pair_column, kind, args.label_separator)


def _new_model(args: argparse.Namespace, kind: str, labels: Any, train: list[dict[str, Any]]) -> Any:
    """An encoder with a new head for these labels."""
    import numpy as np

    from mlx_bert.data.labels import class_weights
    from mlx_bert.factory import create_bert_with_head

    head = args.head or "multiclass_classification"
    if head == "binary_classification" and len(labels) != 2:
        raise ValueError(f"[train] expected 2 classes for binary_classification but got {list(labels.names)}.")
    options: dict[str, Any] = {
        "pooling_type": args.pooling or "mean",
        "hidden_sizes": _sizes(args.hidden_sizes),
        "dropout_prob": 0.1 if args.dropout is None else args.dropout,
    }
    count = len(labels) if labels is not None else 1
    if kind == "number" and (targets := np.size(train[0]["labels"])) > 1:
        options["num_targets"] = targets
    if args.class_weights:
        if kind != "class" or head == "ordinal_regression":
            raise ValueError(f"[train] expected a classification into classes with --class-weights but got {head}.")
        counts = np.bincount([example["labels"] for example in train], minlength=count)
        options["class_weights"] = class_weights(counts)
    return create_bert_with_head(
        bert_name=args.model,
        head_type=head,
        num_labels=count,
        id2label=None if labels is None else labels.to_dict(),
        **options,
    )


def _sizes(text: str | None) -> list[int]:
    try:
        return [int(size) for size in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"[train] expected --hidden-sizes such as 384 or 384,128 but got {text!r}.") from None


def _print_summary(
    args: argparse.Namespace, model: Any, trainer: Any, train: list, held_out: list, labels: Any, kind: str, source: str
) -> None:
    from mlx_bert.training.freezing import apply_freeze, parameter_counts

    settings = trainer.args
    apply_freeze(model, settings.freeze)
    trainable, total = parameter_counts(model)
    config = model.bert.config
    ranks = f", on {trainer.world.size} ranks" if trainer.world.size > 1 else ""
    lines = {
        "model": f"{args.model} ({config.model_type}, {config.num_hidden_layers} layers of width {config.hidden_size})",
        "head": f"{model.head.head_type}, {model.head.config.pooling_type} pooling",
        "parameters": f"{trainable:,} trainable of {total:,}",
        "training": f"{len(train):,} examples, {trainer.total_steps:,} updates in {settings.epochs} epochs{ranks}",
        "evaluation": f"{len(held_out):,} examples ({source})" if held_out else "none",
    }
    if kind == "class":
        counts = Counter(example["label"] for example in train)
    elif kind == "multilabel":
        counts = Counter(name for example in train for name in example["label"])
    else:
        counts = Counter()
    if counts:
        shown = [f"{name} {counts[name]}" for name in labels.names[:12]]
        lines["labels"] = ", ".join(shown) + (f" and {len(labels) - 12} more" if len(labels) > 12 else "")
    lines["output"] = settings.output_dir
    for name, value in lines.items():
        print(f"{name:<12}{value}")
    print(flush=True)


def _print_result(result: Any) -> None:
    print()
    if result.best_step is None:
        print(f"Trained {result.steps} updates in {result.seconds:.1f} s.")
    else:
        shown = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
        early = " (stopped early)" if result.stopped_early else ""
        print(f"Best after {result.best_step} of {result.steps} updates{early}, {result.seconds:.1f} s: {shown}")
    model = result.output_dir / ("final_model" if result.best_step is None else "best_model")
    print(f"Model:   {model}")
    print(f"History: {result.output_dir / 'history.json'}")
    print(f'Try it:  mlx-bert predict --model {result.output_dir} "some text"')
