"""Train a classifier from a few examples per class, beside one whose encoder stays as it is.

    python examples/train_few_shot.py ENCODER [--train FILE] [--test FILE] [--per-class N] [--seeds N] [--output DIR]

ENCODER is a sentence encoder's folder or hub id. FILE is JSON Lines or CSV with text and label (examples/data/intent).
Each seed draws other examples. DIR (few_shot_output) gets the last seed's classifier. Under mlx.launch rank 0 alone
prints and writes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mlx_bert import SentenceEncoder
from mlx_bert.data.contrastive_pairs import take_per_class
from mlx_bert.data.readers import read_examples
from mlx_bert.training.distributed import World
from mlx_bert.training.few_shot import FewShotClassifier

DATA = Path(__file__).parent / "data" / "intent"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("encoder", help="folder or hub id")
    parser.add_argument("--train", type=Path, default=DATA / "train.jsonl", help="texts with labels to draw from")
    parser.add_argument("--test", type=Path, default=DATA / "test.jsonl", help="texts with labels to measure on")
    parser.add_argument("--per-class", type=int, default=8, help="examples of each class (8)")
    parser.add_argument("--seeds", type=int, default=1, help="so many draws, one after the other (1)")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the pairs (1)")
    parser.add_argument("--max-pairs", type=int, help="at most so many different pairs")
    parser.add_argument("--learning-rate", type=float, default=2e-5, help="of the encoder (2e-5)")
    parser.add_argument("--output", type=Path, default=Path("few_shot_output"), help="folder to write")
    options = parser.parse_args()
    try:
        run(options)
    except (ValueError, OSError) as error:
        print(f"train_few_shot: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> dict[str, float]:
    """Train with each seed, print the accuracies on the test texts, and save the last classifier."""
    if options.output.exists():
        raise FileExistsError(f"{options.output} is there already. Remove it, or choose another folder.")
    world = World()
    train, test = (read_examples(path) for path in (options.train, options.test))
    texts, wanted = [row["text"] for row in test], np.array([row["label"] for row in test])
    accuracies: dict[str, list[float]] = {"frozen encoder": [], "few-shot": []}
    for seed in range(options.seeds):
        chosen = take_per_class([row["label"] for row in train], options.per_class, seed)
        given = [train[place]["text"] for place in chosen], [train[place]["label"] for place in chosen]
        classifier = FewShotClassifier(SentenceEncoder.from_pretrained(options.encoder, dtype="float32"))
        classifier.fit(*given, {"epochs": 0})
        accuracies["frozen encoder"].append(float(np.mean(np.array(classifier.predict(texts)) == wanted)))
        started, folder = time.perf_counter(), tempfile.mkdtemp()
        settings = {"epochs": options.epochs, "learning_rate": options.learning_rate, "seed": seed}
        settings |= {"output_dir": folder, "save_every": "no"}
        result = classifier.fit(*given, settings, max_pairs=options.max_pairs)
        shutil.rmtree(folder)
        accuracies["few-shot"].append(float(np.mean(np.array(classifier.predict(texts)) == wanted)))
        shown = ", ".join(f"{name} {values[-1]:.4f}" for name, values in accuracies.items())
        if world.is_main:
            print(f"seed {seed}: {shown}; {result.steps} updates in {time.perf_counter() - started:.0f} s", flush=True)
    means = {name: float(np.mean(values)) for name, values in accuracies.items()}
    if not world.is_main:
        return means
    for name, values in accuracies.items():
        print(f"{name:<15} {means[name]:.4f} (from {min(values):.4f} to {max(values):.4f})")
    classifier.save_pretrained(options.output)
    print(f"written to {options.output}")
    return means


if __name__ == "__main__":
    sys.exit(main())
