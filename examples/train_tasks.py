"""Train one encoder for several tasks at once, each with texts of its own, and see where it is wrong.

    python examples/train_tasks.py ENCODER [--data DIR] [--tasks NAME,NAME] [--epochs N] [--output DIR]

ENCODER is a folder or hub id. DIR (examples/data) has a folder for each task with train.jsonl and test.jsonl of rows
with text and label. The first epochs train the heads alone, on outputs of the encoder computed once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from mlx_bert import MultiheadClassifier
from mlx_bert.data.readers import read_examples

DATA = Path(__file__).parent / "data"
TEXTS = ["Could you dim the lamp in the hall?", "What a wonderful evening that was, I am so happy!"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("encoder", help="folder or hub id")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the tasks' folders")
    parser.add_argument("--tasks", default="sentiment,emotion,intent", help="their names (sentiment,emotion,intent)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs with the top layers of the encoder (3)")
    parser.add_argument("--output", type=Path, default=Path("tasks_output"), help="folder to write")
    options = parser.parse_args()
    try:
        run(options)
    except (ValueError, OSError) as error:
        print(f"train_tasks: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> None:
    """Train, print what the test texts of each task come to, save the classifier."""
    if options.output.exists():
        raise FileExistsError(f"{options.output} is there already. Remove it, or choose another folder.")
    tasks = [name.strip() for name in options.tasks.split(",")]
    train, test = (
        {task: read_examples(options.data / task / f"{part}.jsonl") for task in tasks} for part in ("train", "test")
    )
    with tempfile.TemporaryDirectory() as folder:
        training = {
            "model_name": options.encoder,
            "epochs": options.epochs,
            "learning_rate": 1e-4,  # of the heads, and ten times that while they train alone
            "test_size": 0.0,  # the test texts are in files of their own
            "output_dir": folder,
        }
        encoder = {"freeze_epochs": 5, "unfreeze_layers": 2, "lr_multiplier": 1.0}
        classifier = MultiheadClassifier({"training": training, "encoder": encoder})
        classifier.train(train, progress=sys.stderr.isatty())
    classifier.display(classifier.analyze(data=test), max_errors=3)
    print()
    found = classifier.predict_all_tasks(TEXTS)
    for number, text in enumerate(TEXTS):
        print(f"{text}  " + ", ".join(f"{task}: {rows[number]['label']}" for task, rows in found.items()))
    print(f"\nSaved in {classifier.save(options.output)}")


if __name__ == "__main__":
    sys.exit(main())
