"""Tags and answers learnt from windows of long texts, and measured on the whole texts.

Dimension key: N windows, B windows of a batch, L tokens, C tags.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from heads.tagging_metrics import entity_metrics
from mlx_bert.data.collate import Arrays, Collator
from mlx_bert.data.kinds import Example
from mlx_bert.data.questions import answer_metrics
from mlx_bert.data.windows import Answer, best_answers
from mlx_bert.training.objective import HeadObjective, loss_weight


class WindowCollator(Collator):
    """Pads windows; labels say where a window begins in its padded row, so that the parts find together again."""

    def __call__(self, examples: Sequence[Example]) -> Arrays:
        """Batch examples of ``tag_windows`` or ``question_windows``.

        Returns:
            As :class:`Collator`; ``labels`` has ``window`` and ``offset`` int32 ``(B,)`` (the number of the window, -1
            for training; the padding before it), and ``tags`` ``(B, L)`` or ``start_positions`` and ``end_positions``
            ``(B,)``.
        """
        tagged = "labels" in examples[0] and not isinstance(examples[0]["labels"], Mapping)
        self.token_labels = tagged
        batch = super().__call__(examples)
        length = batch["hidden_states" if "hidden_states" in batch else "input_ids"].shape[1]
        missing = [length - len(example["input_ids"]) for example in examples]
        offset = mx.array(missing if self.padding_side == "left" else [0] * len(examples))
        numbers = {"window": mx.array([example.get("window", -1) for example in examples]), "offset": offset}
        if tagged:
            batch["labels"] = {"tags": batch["labels"], **numbers}
        elif "labels" in batch:
            batch["labels"] = {name: places + offset for name, places in batch["labels"].items()} | numbers
        return batch


def numbered(windows: Sequence[Example]) -> list[Example]:
    """The windows to measure on, each with its number."""
    return [{**window, "window": number} for number, window in enumerate(windows)]


class TaggingObjective(HeadObjective):
    """Loss over the tags of windows; metrics over the words of whole texts.

    Args:
        windows: those to measure on, of ``tag_windows``, numbered.
        rows: the texts that they were cut from, with ``tags``.
        names: the tags, in the order of their ids.
    """

    def __init__(self, windows: Sequence[Example], rows: Sequence[Example], names: Sequence[str]) -> None:
        self.windows = windows
        self.rows = rows
        self.names = list(names)

    def loss(self, model: Any, outputs: Mapping[str, Any], batch: Arrays) -> tuple[mx.array, mx.array]:
        tags = batch["labels"]["tags"]
        return model.head.compute_loss(outputs, tags), loss_weight(model.head, tags)

    def tags(self, outputs: Mapping[str, Any], labels: Mapping[str, Any]) -> list[list[str]]:
        """The predicted tag of each word of each text.

        Args:
            outputs: with ``predictions`` ``(N, L)``, of all windows in any order.
            labels: ``window`` and ``offset`` ``(N,)``.
        """
        found = [[self._outside()] * len(row["tokens"]) for row in self.rows]
        predicted, offsets = np.array(outputs["predictions"]), np.array(labels["offset"])
        for place, number in enumerate(np.array(labels["window"])):
            if number >= 0:
                window = self.windows[number]
                for word, token in window["words"]:
                    found[window["row"]][word] = self.names[int(predicted[place, offsets[place] + token])]
        return found

    def _outside(self) -> str:
        """The tag of a word that the tokenizer has nothing of."""
        return "O" if "O" in self.names else self.names[0]

    def metrics(self, model: Any, outputs: Mapping[str, Any], labels: Any) -> dict[str, float]:
        """``accuracy`` over words, ``f1_macro`` over the tags that occur; for BIO tags the entities' scores."""
        from sklearn.metrics import accuracy_score, f1_score

        found, wanted = self.tags(outputs, labels), [row["tags"] for row in self.rows]
        flat = [tag for tags in found for tag in tags], [tag for tags in wanted for tag in tags]
        metrics = {
            "accuracy": float(accuracy_score(flat[1], flat[0])),
            "f1_macro": float(f1_score(flat[1], flat[0], average="macro", zero_division=0)),
        }
        if any(name.startswith(("B-", "I-")) for name in self.names):
            entities = entity_metrics(found, wanted)
            metrics |= {name: 0.0 if math.isnan(value) else value for name, value in entities.items()}
        return metrics


class QuestionObjective(HeadObjective):
    """Loss over the answers in windows; exact match and F1 over whole contexts.

    Args:
        windows: those to measure on, of ``question_windows(keep=True)``, numbered.
        max_answer_length: largest number of tokens in an answer.
        null_threshold: see :func:`best_answers`; None where every question has an answer.
    """

    def __init__(
        self, windows: Sequence[Example], max_answer_length: int = 30, null_threshold: float | None = None
    ) -> None:
        self.windows = windows
        self.max_answer_length = max_answer_length
        self.null_threshold = null_threshold

    def loss(self, model: Any, outputs: Mapping[str, Any], batch: Arrays) -> tuple[mx.array, mx.array]:
        labels = {name: batch["labels"][name] for name in ("start_positions", "end_positions")}
        return model.head.compute_loss(outputs, labels), loss_weight(model.head, labels)

    def answers(self, outputs: Mapping[str, Any], labels: Mapping[str, Any], top_k: int = 1) -> dict[int, list[Answer]]:
        """The best answers to each question, by the number of its row; see :func:`best_answers`.

        Args:
            outputs: ``start_logits`` and ``end_logits`` ``(N, L)``, of all windows in any order.
            labels: ``window`` and ``offset`` ``(N,)``.
            top_k: answers at most.
        """
        logits = [np.array(outputs[name]) for name in ("start_logits", "end_logits")]
        offsets = np.array(labels["offset"])
        parts: dict[int, list[tuple[int, list[np.ndarray]]]] = {}
        for place, number in enumerate(np.array(labels["window"])):
            if number >= 0:
                begin, size = int(offsets[place]), len(self.windows[number]["input_ids"])
                own = [rows[place, begin : begin + size] for rows in logits]
                parts.setdefault(self.windows[number]["row"], []).append((int(number), own))
        found = {}
        for row, given in sorted(parts.items()):
            given.sort(key=lambda part: part[0])
            windows = [self.windows[number] for number, _ in given]
            starts, ends = ([own[side] for _, own in given] for side in (0, 1))
            found[row] = best_answers(
                windows[0]["source"]["context"], [window["encoding"] for window in windows], starts, ends,
                self.max_answer_length, top_k, self.null_threshold,
            )  # fmt: skip
        return found

    def metrics(self, model: Any, outputs: Mapping[str, Any], labels: Any) -> dict[str, float]:
        """``exact_match`` and ``f1``; see :func:`answer_metrics`."""
        found = self.answers(outputs, labels)
        sources = {window["row"]: window["source"] for window in self.windows}
        wanted = [sources[row]["answers"]["text"] for row in found]
        return answer_metrics([each[0].text if each else "" for each in found.values()], wanted)
