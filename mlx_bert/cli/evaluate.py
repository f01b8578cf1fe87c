"""Measure a trained model on labelled data: metrics, a report per class or entity, the confusion matrix.

The folder says what the model is: one with a head, with heads of several tasks, an embedding model, a cross-encoder.
Data are what mlx-bert train takes.

examples:
  mlx-bert evaluate --model reviews-model --data held-out.csv
  mlx-bert evaluate --model reviews-model --data held-out.jsonl --text-column review --json > metrics.json
  mlx-bert evaluate --model reviews-model --data held-out.csv --plot confusion.png
  mlx-bert evaluate --model ner-model --data test.conll
  mlx-bert evaluate --model qa-model --data dev-v2.0.json
  mlx-bert evaluate --model mails-model --data mails.csv --tasks intent=intent mood=mood
  mlx-bert evaluate --model my-embedder --data stsb.jsonl"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlx_bert.cli.data_options import SOURCES, add_data_arguments, read_rows_of
from mlx_bert.cli.embedding_data import add_score_arguments, read_texts
from mlx_bert.cli.head_data import (
    EMBEDDERS,
    KIND_OF_HEAD,
    add_window_arguments,
    collator_of,
    kind_of_head,
    measured_examples,
)
from mlx_bert.cli.model_kind import (
    CROSS_ENCODER,
    EMBEDDING,
    FEW_SHOT,
    JOINT,
    MASKED_LM,
    MULTI_TASK,
    SENTENCE_MTL,
    add_model_arguments,
    find_model,
)
from mlx_bert.cli.reports import class_report, entity_report, label_report, print_report, value_report
from mlx_bert.cli.task_options import add_task_arguments


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mlx-bert evaluate``."""
    add_model_arguments(parser)
    parser.add_argument("--data", required=True, metavar="DATA", help=f"labelled data: {SOURCES}")
    add_data_arguments(parser)
    add_task_arguments(parser)
    add_score_arguments(parser)
    add_window_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="texts per batch (default: 32)")
    parser.add_argument("--max-length", type=int, metavar="TOKENS", help="truncate texts to this many tokens")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw the confusion matrix into this .png file; one for each of several tasks"
    )


def main(args: argparse.Namespace) -> int:
    """Evaluate, print and return the exit code."""
    if args.plot:
        from mlx_bert.plots import require_matplotlib

        require_matplotlib()
    if args.batch_size < 1:
        raise ValueError(f"[evaluate] expected --batch-size of at least 1 but got {args.batch_size}.")
    model = find_model(args.model, args.task)
    measure = {
        "head": head_report,
        MULTI_TASK: tasks_report,
        EMBEDDING: embedding_report,
        CROSS_ENCODER: cross_encoder_report,
        MASKED_LM: masked_lm_report,
        FEW_SHOT: few_shot_classifier_report,
        JOINT: joint_report,
        SENTENCE_MTL: sentence_mtl_report,
    }[model.task]
    report = {"model": model.folder, "data": args.data, **measure(model.folder, args)}
    if args.plot:
        _plot(report, args.plot)
    if args.json:
        from mlx_bert.checkpoint import finite_or_null

        print(json.dumps(finite_or_null(report), indent=2, ensure_ascii=False))
    else:
        print_report(report)
    return 0


def head_report(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """The report of a model with one head."""
    from mlx_bert.data.collate import tokenize_examples
    from mlx_bert.data.labels import LabelMap
    from mlx_bert.model import BertWithHead
    from mlx_bert.tokenizer import Tokenizer

    model, tokenizer = BertWithHead.from_pretrained(folder), Tokenizer.from_pretrained(folder)
    head = str(model.head.head_type)
    if head not in KIND_OF_HEAD:
        raise ValueError(f"[evaluate] expected a head of {', '.join(KIND_OF_HEAD)} but {folder} has {head}.")
    kind = kind_of_head(head, args.data, args)
    rows = read_texts(args.data, kind, args) if kind == "scored_pair" else read_rows_of(args.data, kind, args)
    labels = None
    if head in EMBEDDERS:
        labels = LabelMap.from_labels([row["label"] for row in rows]) if kind == "class" else None
    elif kind in ("class", "multilabel", "tagging"):
        count = model.head.config.output_size
        labels = LabelMap.from_dict(model.id2label or {index: str(index) for index in range(count)})
    measured = measured_examples(kind, rows, labels, tokenizer, args, args.max_length, args.data)
    examples = tokenize_examples(measured.examples, tokenizer, args.max_length)
    metrics, outputs, targets = run_over(
        model, measured.objective, examples, collator_of(kind, model, tokenizer, True), args
    )
    report: dict[str, Any] = {"examples": len(rows), "metrics": metrics}
    if head in EMBEDDERS:
        return report
    if kind == "class":
        report |= class_report(outputs["predictions"].reshape(-1), targets, labels.names)
    elif kind == "multilabel":
        report["classes"] = label_report(outputs["predictions"], targets, labels.names)
    elif kind == "number":
        count = outputs["predictions"].reshape(len(rows), -1).shape[1]
        if count > 1:
            report["targets"] = value_report(outputs["predictions"], targets, _target_names(rows, count))
    elif kind == "tagging":
        found, wanted = measured.objective.tags(outputs, targets), [row["tags"] for row in rows]
        flat = [[labels.index(tag) for tags in part for tag in tags] for part in (found, wanted)]
        report |= class_report(*flat, labels.names)
        if any(name.startswith(("B-", "I-")) for name in labels.names):
            report["entities"] = entity_report(found, wanted)
    return report


def run_over(
    model: Any, objective: Any, examples: Sequence[dict], collate: Any, args: argparse.Namespace
) -> tuple[dict[str, float], dict[str, Any], Any]:
    """Metrics, outputs and labels of a model over examples."""
    from mlx_bert.data.collate import token_count
    from mlx_bert.data.samplers import LengthBucketSampler
    from mlx_bert.training.objective import evaluate

    sampler = LengthBucketSampler([token_count(example) for example in examples], args.batch_size, shuffle=False)
    batches = (collate([examples[index] for index in batch.indices]) for batch in sampler.batches())
    return evaluate(model.eval(), objective, batches)


def _target_names(rows: Any, count: int) -> list[str]:
    return list(rows.classes.get("label") or [f"target {number}" for number in range(1, count + 1)])


def tasks_report(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """The report of each task of a model with several."""
    from mlx_bert.multihead import MultiheadClassifier

    model = MultiheadClassifier().load(folder)
    if args.max_length:
        model.config.training.max_length = args.max_length

    def predict(texts: list[str]) -> dict[str, list[str]]:
        found = model.predict_all_tasks(texts)
        return {task: [each["label"] for each in rows] for task, rows in found.items()}

    return _report_of_tasks(folder, {task: model.get_labels(task) for task in model.tasks}, predict, args)


def sentence_mtl_report(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """The report of each task beside sentence embeddings."""
    from mlx_bert.mtl import SentenceTransformerMTL
    from mlx_bert.mtl_data import MAX_LENGTH

    model = SentenceTransformerMTL.from_pretrained(folder)

    def predict(texts: list[str]) -> dict[str, list[str]]:
        found = model.predict(texts, batch_size=args.batch_size, max_length=args.max_length or MAX_LENGTH)
        return {task: each["labels"] for task, each in found.items()}

    return _report_of_tasks(folder, model.tasks, predict, args)


def _report_of_tasks(
    folder: str, labels: dict[str, list[str]], predict: Callable[[list[str]], dict[str, list[str]]],
    args: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    from mlx_bert.cli.task_options import read_task_rows

    tasks = args.tasks or {task: task for task in labels}
    if unknown := sorted(set(tasks) - set(labels)):
        raise ValueError(f"[evaluate] {folder} has no task {', '.join(unknown)}. It has {', '.join(labels)}.")
    rows = read_task_rows(args.data, tasks, args)
    found = predict([row["text"] for row in rows])
    reports = {}
    for task in tasks:
        known = {name: number for number, name in enumerate(labels[task])}
        places = [place for place, row in enumerate(rows) if row["label"].get(task) is not None]
        if unseen := sorted({rows[place]["label"][task] for place in places} - set(known)):
            raise ValueError(f"[evaluate] the task {task} has no label {unseen[0]!r}. It has {', '.join(known)}.")
        if not places:
            continue
        wanted = [known[rows[place]["label"][task]] for place in places]
        own = class_report([known[found[task][place]] for place in places], wanted, list(known))
        right = sum(own["confusion"][number][number] for number in range(len(known)))
        macro = [row["f1"] for row in own["classes"].values() if row["support"]]
        metrics = {"accuracy": right / len(places), "f1_macro": sum(macro) / len(macro)}
        reports[task] = {"examples": len(places), "metrics": metrics, **own}
    means = {
        name: sum(own["metrics"][name] for own in reports.values()) / len(reports) for name in ("accuracy", "f1_macro")
    }
    return {"examples": len(rows), "metrics": means, "tasks": reports}


def embedding_report(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """How well embeddings agree with scores, or tell positives from negatives."""
    from mlx_bert.cli.embedding_data import evaluator_of
    from mlx_bert.inference.encode import SentenceEncoder

    settings = {} if args.max_length is None else {"max_seq_length": args.max_length}
    encoder = SentenceEncoder.from_pretrained(folder, **settings)
    rows = read_texts(args.data, None, args)
    return {"examples": len(rows), "metrics": evaluator_of(rows, args.batch_size)(encoder)}


def cross_encoder_report(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """How a cross-encoder scores pairs, or ranks the documents of queries."""
    import numpy as np

    from mlx_bert.cli.train_cross_encoder import pairs_kind
    from mlx_bert.data.groups import as_groups
    from mlx_bert.data.labels import LabelMap
    from mlx_bert.inference.cross_encoder import CrossEncoder
    from mlx_bert.training.cross_encoder import pair_metrics

    model = CrossEncoder.from_pretrained(folder, max_length=args.max_length)
    several = model.num_labels > 1
    rows = read_texts(args.data, pairs_kind(args.data, args, several), args)
    groups = as_groups(rows, args.data)
    pairs = [(group.query, document) for group in groups for document in group.documents]
    scores = model.predict(pairs, args.batch_size, show_progress_bar=False)
    labels = [label for group in groups for label in group.labels]
    report: dict[str, Any] = {"examples": len(rows)}
    if several:
        names = LabelMap.from_dict(model.model.id2label or {index: str(index) for index in range(model.num_labels)})
        labels = [names.index(str(label)) for label in labels]
        report |= class_report(scores.argmax(axis=1), labels, names.names)
    owners = np.repeat(np.arange(len(groups)), [len(group.documents) for group in groups])
    return {"metrics": pair_metrics(scores.reshape(len(pairs), -1), np.array(labels), owners), **report}


def masked_lm_report(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Perplexity and accuracy over masked tokens."""
    from mlx_bert.cli.train_masked_lm import plain_texts
    from mlx_bert.data.masking import Masking, MaskingCollator, text_rows
    from mlx_bert.tokenizer import Tokenizer
    from mlx_bert.training.feed import default_collator
    from mlx_bert.training.masked_lm import MaskedLMObjective, load_masked_lm

    model, tokenizer = load_masked_lm(folder), Tokenizer.from_pretrained(folder)
    texts = plain_texts(args.data, args)
    rows = [{**row, "fixed": True} for row in text_rows(texts, tokenizer, args.max_length)]
    collate = MaskingCollator(default_collator(model, tokenizer, exact=True), tokenizer, Masking())
    metrics, *_ = run_over(model, MaskedLMObjective(), rows, collate, args)
    return {"examples": len(texts), "metrics": metrics}


def joint_report(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """The report of intents and tags."""
    from mlx_bert.cli import train_joint

    return train_joint.joint_report(folder, args)


def few_shot_classifier_report(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """The report of a classifier over embeddings."""
    from mlx_bert.cli.train_few_shot import few_shot_report
    from mlx_bert.training.few_shot import FewShotClassifier

    classifier = FewShotClassifier.from_pretrained(folder)
    if args.max_length:
        classifier.encoder.max_seq_length = args.max_length
    return few_shot_report(classifier, read_rows_of(args.data, "class", args), args.batch_size)


def _plot(report: dict[str, Any], file: str) -> None:
    from mlx_bert.plots import confusion_png

    path = Path(file)
    if path.suffix.lower() != ".png":
        raise ValueError(f"[evaluate] expected --plot to end in .png but got {file}.")
    drawn = {path: report} if "confusion" in report else {
        path.with_name(f"{path.stem}-{task}.png"): own for task, own in report.get("tasks", {}).items()
    }  # fmt: skip
    if not drawn:
        raise ValueError("[evaluate] --plot draws the confusion matrix of classes: this model has none. Leave it out.")
    for where, own in drawn.items():
        confusion_png(own["confusion"], list(own["classes"]), where)
