"""Measure a fine-tuned model on labelled texts: metrics, a report per class, the confusion matrix.

examples:
  mlx-bert evaluate --model reviews-model --data held-out.csv
  mlx-bert evaluate --model reviews-model --data held-out.jsonl --text-column review --json > metrics.json"""

from __future__ import annotations

import argparse
import json
from typing import Any

from mlx_bert.cli.train import LABEL_KINDS, add_data_arguments, read_labelled

SHOWN_CLASSES = 15  # above it the confusion matrix becomes a list of the commonest confusions


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mlx-bert evaluate``."""
    parser.add_argument("--model", required=True, metavar="FOLDER", help="fine-tuned model, or a training run's output")
    parser.add_argument("--data", required=True, metavar="FILE", help="labelled texts: .csv, .tsv or .jsonl")
    add_data_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="texts per batch (default: 32)")
    parser.add_argument("--max-length", type=int, metavar="TOKENS", help="truncate texts to this many tokens")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")


def main(args: argparse.Namespace) -> int:
    """Evaluate, print and return the exit code."""
    from mlx_bert.data.collate import token_count, tokenize_examples
    from mlx_bert.data.labels import LabelMap, encode_labels
    from mlx_bert.data.samplers import LengthBucketSampler
    from mlx_bert.inference.predict import find_model_folder
    from mlx_bert.model import BertWithHead
    from mlx_bert.tokenizer import Tokenizer
    from mlx_bert.training.feed import default_collator
    from mlx_bert.training.objective import HeadObjective, evaluate

    folder = find_model_folder(args.model)
    model, tokenizer = BertWithHead.from_pretrained(folder), Tokenizer.from_pretrained(folder)
    head = str(model.head.head_type)
    if head not in LABEL_KINDS:
        raise ValueError(f"[evaluate] expected a head of {', '.join(LABEL_KINDS)} but {folder} has {head}.")
    kind = LABEL_KINDS[head]
    examples = read_labelled(args.data, args, kind)
    names: list[str] = []
    if kind == "number":
        examples = [{**example, "labels": example["label"]} for example in examples]
    else:
        count = model.head.config.output_size
        labels = LabelMap.from_dict(model.id2label or {index: str(index) for index in range(count)})
        names = list(labels.names)
        examples = encode_labels(examples, labels, kind == "multilabel", args.data)
    examples = tokenize_examples(examples, tokenizer, args.max_length)
    collate = default_collator(model, tokenizer)
    sampler = LengthBucketSampler([token_count(example) for example in examples], args.batch_size, shuffle=False)
    batches = (collate([examples[index] for index in batch.indices]) for batch in sampler.batches())
    metrics, outputs, targets = evaluate(model, HeadObjective(), batches)
    report = {"model": str(folder), "data": args.data, "examples": len(examples), "metrics": metrics}
    if kind == "class":
        report |= class_report(outputs["predictions"].reshape(-1), targets, names)
    elif kind == "multilabel":
        report["classes"] = label_report(outputs["predictions"], targets, names)
    if args.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        print_report(report)
    return 0


def class_report(predictions: Any, targets: Any, names: list[str]) -> dict[str, Any]:
    """Precision, recall, F1 and support per class, and the confusion matrix ``[true][predicted]``."""
    import numpy as np
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    truth, found, every = np.array(targets).reshape(-1), np.asarray(predictions).astype(int), list(range(len(names)))
    scores = precision_recall_fscore_support(truth, found, labels=every, zero_division=0)
    return {"classes": _per_class(scores, names), "confusion": confusion_matrix(truth, found, labels=every).tolist()}


def label_report(predictions: Any, targets: Any, names: list[str]) -> dict[str, Any]:
    """Precision, recall, F1 and support of each label of a multi-label task."""
    import numpy as np
    from sklearn.metrics import precision_recall_fscore_support

    return _per_class(precision_recall_fscore_support(np.array(targets) > 0, predictions > 0, zero_division=0), names)


def _per_class(scores: Any, names: list[str]) -> dict[str, Any]:
    return {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, p, r, f, n in zip(names, *scores, strict=True)
    }


def print_report(report: dict[str, Any]) -> None:
    """Print a report as tables."""
    print(f"{report['model']} on {report['examples']:,} examples of {report['data']}\n")
    width = max(len(name) for name in report["metrics"])
    for name, value in report["metrics"].items():
        print(f"{name:<{width}}  {value:.4f}")
    if classes := report.get("classes"):
        width = max(5, *(len(name) for name in classes))
        print(f"\n{'class':<{width}}  precision     recall         f1  support")
        for name, row in classes.items():
            scores = "".join(f"  {row[key]:>9.4f}" for key in ("precision", "recall", "f1"))
            print(f"{name:<{width}}{scores}  {row['support']:>7}")
    if confusion := report.get("confusion"):
        _print_confusion(confusion, list(report["classes"]))


def _print_confusion(confusion: list[list[int]], names: list[str]) -> None:
    if len(names) <= SHOWN_CLASSES:
        width, cell = max(len(name) for name in names), max(4, *(len(str(n)) for row in confusion for n in row))
        print("\nconfusion matrix: rows are true, columns predicted, numbered as the rows")
        print(" " * (width + 4) + "".join(f"  {number:>{cell}}" for number in range(1, len(names) + 1)))
        for number, (name, row) in enumerate(zip(names, confusion, strict=True), 1):
            print(f"{number:>2}  {name:<{width}}" + "".join(f"  {count:>{cell}}" for count in row))
        return
    pairs = [
        (count, true, found) for true, row in enumerate(confusion) for found, count in enumerate(row) if true != found
    ]
    print("\ncommonest confusions (true -> predicted)")
    for count, true, found in sorted(pairs, key=lambda pair: -pair[0])[:SHOWN_CLASSES]:
        if count:
            print(f"{count:>5}  {names[true]} -> {names[found]}")
