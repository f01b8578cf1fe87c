"""The data sets of the accuracy benchmark, and what its recipes are given and give."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_bert.core import BertCore
from mlx_bert.tokenizer import Tokenizer

LAYOUT = {
    "uci_sentiment": "text, label",
    "clinc150": "text, label (the intent), domain",
    "goemotions": "text, labels (a list of names)",
    "emobank": "text, targets (three numbers)",
    "wnut17": "tokens, tags (BIO, one per token)",
    "codah": "question, choices, label (the place of the right one)",
    "squad11": "question, context, answers (text and answer_start, a list each, or a list of both)",
    "stsb": "text_a, text_b, score (0 to 5)",
    "snips_joint": "text, tokens, tags (BIO, one per token), label (the intent)",
}
PARTS = ("train", "validation", "test")
SEED = 42


@dataclass(frozen=True)
class Context:
    """What a recipe works with.

    Attributes:
        model: folder or hub id of the encoder.
        data: the folder of all data sets.
        output: an empty folder for runs.
        dtype: type of the computation.
        limit: rows to take of each file, evenly spaced; None for all.
    """

    model: str
    data: Path
    output: Path
    dtype: str
    limit: int | None

    def rows(self, data: str, part: str) -> list[dict[str, Any]]:
        """The rows of a file."""
        with (self.data / data / f"{part}.jsonl").open(encoding="utf-8") as lines:
            found = [json.loads(line) for line in lines if line.strip()]
        count = min(self.limit or len(found), len(found))
        return [found[len(found) * number // count] for number in range(count)]

    def encoder(self) -> tuple[BertCore, Tokenizer]:
        """The encoder, fresh, and its tokenizer; new weights are then drawn from the same seed."""
        core = BertCore.from_pretrained(self.model)
        mx.random.seed(SEED)
        return core, Tokenizer.from_pretrained(self.model)

    def settings(self, **others: Any) -> dict[str, Any]:
        """The settings of every run, with ``others``, as ``TrainingArgs`` takes them."""
        own = {"output_dir": str(self.output), "batch_size": 32, "dtype": self.dtype, "save_every": "no", "seed": SEED}
        return {**own, **others}


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
