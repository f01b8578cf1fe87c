"""Training a text classifier from a few examples per class."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from mlx_bert.checkpoint import write_json
from mlx_bert.cli.config_file import CONFIG_FILE, resolved
from mlx_bert.cli.data_options import read_rows_of
from mlx_bert.cli.reports import class_report, print_report
from mlx_bert.cli.train_run import callbacks, label_line, model_line, report_stop
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.training.args import TrainingArgs, given_arguments
from mlx_bert.training.distributed import World
from mlx_bert.training.few_shot import DEFAULTS, FewShotClassifier
from mlx_bert.training.outcome import TrainingInterrupted


def train(args: argparse.Namespace, settings: Any) -> int:
    """Read, train encoder and classifier, measure, save."""
    world = World()
    settings = TrainingArgs.from_dict({**DEFAULTS, **given_arguments(args)})  # it needs less than other training
    rows = read_rows_of(args.train, "class", args)
    held_out = read_rows_of(args.eval, "class", args) if args.eval else []
    counts = Counter(row["label"] for row in rows)
    classifier = FewShotClassifier(SentenceEncoder.from_pretrained(args.model, dtype="float32"))
    lines = {
        "model": model_line(args.model, classifier.encoder.core),
        "training": f"{len(rows):,} examples",
        "evaluation": f"{len(held_out):,} examples ({args.eval})" if held_out else "none",
        "labels": label_line(counts, sorted(counts)),
        "output": settings.output_dir,
    }
    if world.is_main:
        for name, value in lines.items():
            print(f"{name:<12}{value}")
        print(flush=True)
    texts, labels = ([row[name] for row in rows] for name in ("text", "label"))
    options = {"num_iterations": args.pair_iterations, "max_pairs": args.max_pairs}
    try:
        classifier.fit(texts, labels, settings, **options, callbacks=callbacks(), resume=args.resume)
    except TrainingInterrupted as stopped:
        return report_stop(world, stopped)
    if world.is_main:
        _finish(args, settings, classifier, held_out)
    world.barrier()
    return 0


def _finish(args: argparse.Namespace, settings: TrainingArgs, classifier: FewShotClassifier, held_out: Any) -> None:
    """Save and measure the classifier, and say so."""
    from mlx_bert.cli.train import option_parser

    folder = Path(settings.output_dir)
    model = folder / "final_model"
    classifier.save_pretrained(model, overwrite=True)
    write_json(folder / CONFIG_FILE, resolved(option_parser(), args, settings.to_dict()))
    if held_out:
        report = few_shot_report(classifier, held_out)
        print_report({"model": str(model), "data": args.eval, **report})
    print(f"\nModel:   {model}")
    print(f"Options: {folder / CONFIG_FILE}")
    print(f'Try it:  mlx-bert predict --model {folder} "some text"')


def few_shot_report(classifier: FewShotClassifier, rows: Any, batch_size: int = 32) -> dict[str, Any]:
    """Accuracy, macro F1, and the report per class.

    Raises:
        ValueError: labels that the classifier does not know, all with their lines.
    """
    from heads.metrics import multiclass_metrics
    from mlx_bert.data.labels import LabelMap, encode_labels

    labels = [row["labels"] for row in encode_labels(rows, LabelMap(tuple(classifier.labels)))]
    probabilities = classifier.predict_proba([row["text"] for row in rows], batch_size)
    return {
        "examples": len(rows),
        "metrics": multiclass_metrics(probabilities, labels),
        **class_report(probabilities.argmax(axis=1), labels, classifier.labels),
    }
