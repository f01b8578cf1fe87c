"""How each model of the accuracy benchmark is trained, and the figures that others reached on the same data."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_bert.core import BertCore
from mlx_bert.joint import JointIntentNER, evaluate_joint, train_joint
from mlx_bert.tokenizer import Tokenizer

LAYOUT = {
    "snips_joint": "tokens, tags (BIO, one per token), label (the intent)",
}
SEED = 42
TORCH_JOINT = "torch, all-MiniLM-L6-v2, linear heads, 6 epochs, lr 3e-4, batch 32, one run"


@dataclass(frozen=True)
class Context:
    """What a recipe works with.

    Attributes:
        model: folder or hub id of the encoder.
        data: the folder of all data sets.
        output: an empty folder for runs.
        dtype: type of the computation.
        limit: rows to take of each file; None for all.
    """

    model: str
    data: Path
    output: Path
    dtype: str
    limit: int | None

    def rows(self, data: str, part: str) -> list[dict[str, Any]]:
        """The rows of a file."""
        with (self.data / data / f"{part}.jsonl").open(encoding="utf-8") as lines:
            return [json.loads(line) for line, _ in zip(lines, range(self.limit or 10**9), strict=False)]

    def encoder(self) -> tuple[BertCore, Tokenizer]:
        """The encoder, fresh, and its tokenizer; new weights are then drawn from the same seed."""
        core = BertCore.from_pretrained(self.model)
        mx.random.seed(SEED)
        return core, Tokenizer.from_pretrained(self.model)


@dataclass(frozen=True)
class Figure:
    """One number that a recipe reached, and what it is compared with."""

    data: str
    name: str
    value: float
    reference: float | None = None
    source: str | None = None
    how: str | None = None


@dataclass(frozen=True)
class Recipe:
    """A way of training: one line about it, its data sets, the function."""

    what: str
    data: tuple[str, ...]
    run: Callable[[Context], Sequence[Figure]]


def joint(context: Context) -> list[Figure]:
    """Intent and slots of SNIPS from one encoder, fine-tuned whole."""
    parts = {
        part: [
            {"text": " ".join(row["tokens"]), "intent": row["label"], "tags": row["tags"]}
            for row in context.rows("snips_joint", part)
        ]
        for part in ("train", "validation", "test")
    }
    core, tokenizer = context.encoder()
    intents = sorted({row["intent"] for rows in parts.values() for row in rows})
    tags = sorted({tag for rows in parts.values() for row in rows for tag in row["tags"]} | {"O"})
    model = JointIntentNER(core, tokenizer, intents, tags)
    settings = {
        "learning_rate": 3e-4,
        "head_learning_rate": 1e-3,
        "schedule": "cosine",
        "warmup_ratio": 0.1,
        "epochs": 5,
        "patience": 0,
        "metric": "sentence_accuracy",
        "dtype": context.dtype,
        "output_dir": str(context.output / "joint"),
        "save_every": "no",
        "seed": SEED,
    }
    train_joint(model, parts["train"], parts["validation"], settings)
    found = evaluate_joint(model, parts["test"])
    references = {"intent_accuracy": 0.984, "entity_f1": 0.946, "sentence_accuracy": 0.884}
    return [Figure("snips_joint", name, found[name], value, TORCH_JOINT) for name, value in references.items()]


RECIPES = {
    "joint": Recipe("intent and BiLSTM tagger on one encoder, all of it trained, 5 epochs", ("snips_joint",), joint),
}
