"""Train intents and tags of words together over one encoder, and read both from new sentences.

    python examples/joint_intent_ner.py ENCODER [--train FILE] [--validation FILE] [--freeze PART] [--output DIR]

ENCODER is any encoder's folder or hub id, or the output folder of pretrain_sentence_encoder.py. FILE is JSON Lines with
text (or tokens), intent (or label) and tags, one per word, "O" for none; without one, sentences from a few patterns are
made up. DIR (joint_output) gets best_model.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlx_bert import BertCore, JointIntentNER, Tokenizer, train_joint
from mlx_bert.checkpoint import ready_folder
from mlx_bert.data.readers import read_table

PATTERNS = {
    "play_music": ("play {artist} in the {room}", "i want to hear {artist}", "put on some {artist} at {time}"),
    "book_flight": ("fly me to {city} at {time}", "is there a flight to {city}", "book a seat to {city} for {time}"),
    "set_alarm": ("wake me at {time}", "set an alarm for {time} in the {room}"),
}
VALUES = {
    "artist": ("bach", "nina simone", "abba", "johnny cash", "björk"),
    "room": ("kitchen", "living room", "attic"),
    "city": ("rome", "são paulo", "oslo", "new york", "kyoto"),
    "time": ("noon", "6pm", "half past seven", "midnight"),
}
UNSEEN = ("could you play björk in the attic", "a flight to new york at 6pm please", "wake me at half past seven")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("encoder", help="folder or hub id")
    parser.add_argument("--train", type=Path, help="sentences with intents and tags")
    parser.add_argument("--validation", type=Path, help="the same, to choose the best epoch by")
    parser.add_argument(
        "--freeze", choices=("backbone", "intent", "ner"), action="append", default=[], help="not to train"
    )
    parser.add_argument("--frozen-layers", type=int, help="freeze the embeddings and this many bottom layers")
    parser.add_argument("--output", type=Path, default=Path("joint_output"), help="folder to write")
    parser.add_argument("--epochs", type=int, default=500, help="at most; 5 without progress end the run (500)")
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="of the encoder; the heads' is 1e-3 (5e-5)")
    parser.add_argument("--resume", action="store_true", help="go on from the last epoch's checkpoint")
    options = parser.parse_args()
    try:
        run(options)
    except (ValueError, OSError) as error:
        print(f"joint_intent_ner: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> dict[str, float]:
    """Train, print the metrics of each task by epoch, and predict."""
    best = Path(options.encoder) / "best_model"
    folder = best if best.is_dir() else ready_folder(options.encoder)
    train = read_rows(options.train) if options.train else made_up(240, seed=0)
    validation = read_rows(options.validation) if options.validation else None
    if not options.train:
        validation = validation or made_up(60, seed=1)
    everything = [*train, *(validation or [])]
    tags = sorted({tag for row in everything for tag in row["tags"]} - {"O"})
    intents = sorted({row["intent"] for row in everything})
    model = JointIntentNER(BertCore.from_pretrained(folder), Tokenizer.from_pretrained(folder), intents, ["O", *tags])
    for part in options.freeze:
        model.freeze(part)
    if options.frozen_layers:
        model.freeze("backbone", num_layers=options.frozen_layers)
    args = {"output_dir": str(options.output), "epochs": options.epochs, "learning_rate": options.learning_rate}
    result = train_joint(model, train, validation, args, options.resume)
    columns = ("intent_loss", "intent_accuracy", "ner_loss", "ner_accuracy", "entity_f1")
    print("epoch  rows        " + "  ".join(columns))
    for record in result.history["epochs"]:
        for part, rows in (("train", "train"), ("eval", "validation")):
            if f"{part}_loss" in record:
                cells = "  ".join(f"{record[f'{part}_{name}']:>{len(name)}.4f}" for name in columns)
                print(f"{record['epoch']:>5}  {rows:<10}  {cells}")
    for text, found in zip(UNSEEN, model.predict(UNSEEN), strict=True):
        shown = " ".join(f"{word}/{tag}" for word, tag in zip(found["words"], found["tags"], strict=True))
        print(f"{text!r}: {found['intent']} ({found['confidence']:.2f}), {shown}")
    print(f"written to {options.output}")
    return result.metrics


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file with ``text``, ``intent`` and ``tags``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a row lacks a column.
    """
    rows = []
    for number, row in enumerate(read_table(path), 1):
        text = " ".join(row["tokens"]) if "tokens" in row else row.get("text")
        intent = row.get("intent", row.get("label"))
        if text is None or intent is None or "tags" not in row:
            raise ValueError(f"[joint] expected text, intent and tags in row {number} of {path} but got {sorted(row)}.")
        rows.append({"text": text, "intent": str(intent), "tags": [str(tag) for tag in row["tags"]]})
    return rows


def made_up(count: int, seed: int) -> list[dict[str, Any]]:
    """Sentences from ``PATTERNS``: the intent is the pattern's, the tags are the names of what was filled in."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        intent = list(PATTERNS)[number % len(PATTERNS)]
        words: list[str] = []
        tags: list[str] = []
        for word in rng.choice(PATTERNS[intent]).split():
            name = word.strip("{}")
            filled: Sequence[str] = rng.choice(VALUES[name]).split() if word.startswith("{") else [word]
            words += filled
            tags += [name if word.startswith("{") else "O"] * len(filled)
        rows.append({"text": " ".join(words), "intent": intent, "tags": tags})
    return rows


if __name__ == "__main__":
    sys.exit(main())
