"""What every kind of training shares: the summary before, the run and its interruption, the result after."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from mlx_bert.cli.config_file import CONFIG_FILE, resolved

SHOWN_LABELS = 12
COLUMNS = ("accuracy", "f1_macro", "entity_f1", "exact_match", "f1", "rmse", "r2", "qwk", "spearman_cosine",
           "cosine_accuracy", "recall@1", "cosine_ndcg@10", "ndcg@10", "average_precision", "spearman",
           "perplexity")  # fmt: skip


def callbacks() -> list[Any]:
    """A line per evaluation."""
    from mlx_bert.training.callbacks import EpochTable

    return [EpochTable(COLUMNS)]


def encoder_config(source: str) -> Any:
    """The config of the encoder of a folder or hub id."""
    from mlx_bert.checkpoint import read_json, ready_folder
    from mlx_bert.encoders import find_encoder

    config = read_json(ready_folder(source) / "config.json")
    return find_encoder(config).Config.from_dict(config)


def model_line(source: str, core: Any) -> str:
    """The encoder in a line."""
    config = core.config
    return f"{source} ({config.model_type}, {config.num_hidden_layers} layers of width {config.hidden_size})"


def label_line(counts: Counter, names: list[str]) -> str:
    """How often each class occurs."""
    shown = [f"{name} {counts[name]}" for name in names[:SHOWN_LABELS]]
    return ", ".join(shown) + (f" and {len(names) - SHOWN_LABELS} more" if len(names) > SHOWN_LABELS else "")


def print_summary(trainer: Any, lines: dict[str, str], unit: str = "examples") -> None:
    """Say what is about to be trained; of several ranks only rank 0 does.

    Args:
        trainer: ready to run.
        lines: name -> what stands beside it; parameters, training and output are added.
        unit: what the trainer's examples are.
    """
    from mlx_bert.training.freezing import apply_freeze, parameter_counts

    if not trainer.world.is_main:
        return
    settings = trainer.args
    apply_freeze(trainer.model, trainer.phases[-1].freeze)
    ranks = f", on {trainer.world.size} ranks" if trainer.world.size > 1 else ""
    trainable, total = parameter_counts(trainer.model)
    own = {
        "parameters": f"{trainable:,} trainable of {total:,}",
        "training": f"{len(trainer.feed.train):,} {unit}, {trainer.total_steps:,} updates in {settings.epochs} epochs"
        f"{ranks}",
    }
    known = {"model": lines.pop("model"), **({"head": lines.pop("head")} if "head" in lines else {})}
    for name, value in {**known, **own, **lines, "output": settings.output_dir}.items():
        print(f"{name:<12}{value}")
    print(flush=True)


def report_stop(world: Any, stopped: Any) -> int:
    """Say where an interrupted run is saved, on rank 0, and return the exit code."""
    if world.is_main:
        print(f"\nStopped. The run is saved in {stopped.checkpoint}. Continue with the same command and --resume.",
              file=sys.stderr)  # fmt: skip
    world.barrier()  # a launcher ends the other ranks when one ends: let it be said first
    return 130


def run(trainer: Any, args: argparse.Namespace, extra: dict[str, Any] | None = None, try_it: str | None = None) -> int:
    """Train, write the resolved options beside the checkpoints, print the result and return the exit code.

    Args:
        trainer: ready to run.
        args: the command line.
        extra: resolved values of options by destination, such as the labels that the data have.
        try_it: a command that uses the model; None for a prediction.
    """
    from mlx_bert.cli.train import option_parser
    from mlx_bert.training.callbacks import Callback
    from mlx_bert.training.trainer import TrainingInterrupted

    folder = Path(trainer.args.output_dir)
    options = resolved(option_parser(), args, {**trainer.args.to_dict(), **(extra or {})})

    class SaveOptions(Callback):
        def on_train_begin(self, trainer: Any) -> None:  # not before: an earlier run's folder is left as it was
            trainer.folder.write_json(CONFIG_FILE, options)

    trainer.callbacks.append(SaveOptions())
    try:
        result = trainer.train(resume=args.resume)
    except TrainingInterrupted as stopped:
        return report_stop(trainer.world, stopped)
    if not trainer.world.is_main:
        return 0
    print()
    if result.best_step is None:
        print(f"Trained {result.steps} updates in {result.seconds:.1f} s.")
    else:
        shown = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
        early = " (stopped early)" if result.stopped_early else ""
        print(f"Best after {result.best_step} of {result.steps} updates{early}, {result.seconds:.1f} s: {shown}")
    print(f"Model:   {folder / ('final_model' if result.best_step is None else 'best_model')}")
    print(f"History: {folder / 'history.json'}")
    print(f"Options: {folder / CONFIG_FILE}")
    shown = try_it or f'mlx-bert predict --model {folder} "some text"'
    print(f"Try it:  {shown}")
    return 0
