"""Tasks over sentences: their classes, and sentences with labels of any of them as arrays.

Dimensions: N sentences, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_bert.checkpoint import ready_folder
from mlx_bert.data.collate import IGNORE_INDEX
from mlx_bert.data.labels import LabelMap
from mlx_bert.tokenizer import Tokenizer

MODEL_NAME = "BAAI/bge-large-en-v1.5"
MAX_LENGTH = 128
EXAMPLE_KEYS = ("text", "line", "labels", "input_ids", "attention_mask", "token_type_ids")  # beside its labels
TOPICS = ("Technology", "Business", "Sports", "Entertainment", "Politics", "Science/Health")
SENTIMENTS = ("Positive", "Neutral", "Negative")
PADDINGS = ("max_length", "longest")
CONFIG_FILE = "mtl_config.json"
ENCODER_FOLDER = "bert"

Classes = int | Sequence[int] | Sequence[str]


class MTLDataProcessor:
    """Sentences and labels of several tasks to arrays.

    Args:
        model_name: what the tokenizer belongs to: a folder or hub id; or a ``Tokenizer``.
        max_length: sentences are truncated to this many tokens.
        tasks: {task: classes}, as the model's ``tasks``; None for its default, topic and sentiment.
    """

    def __init__(
        self,
        model_name: str | Path | Tokenizer = MODEL_NAME,
        max_length: int = MAX_LENGTH,
        tasks: Mapping[str, Classes] | None = None,
    ) -> None:
        is_name = isinstance(model_name, str | Path)
        self.tokenizer = Tokenizer.from_pretrained(encoder_folder(model_name)) if is_name else model_name
        self.max_length = max_length
        tasks = {"topic": TOPICS, "sentiment": SENTIMENTS} if tasks is None else tasks
        self.labels = {task: label_map(task, classes) for task, classes in tasks.items()}

    def prepare_data(
        self,
        sentences: Sequence[str],
        topic_labels: Sequence[Any] | None = None,
        sentiment_labels: Sequence[Any] | None = None,
        padding: str = "max_length",
        labels: Mapping[str, Sequence[Any]] | None = None,
    ) -> dict[str, mx.array]:
        """Tokenise sentences and encode their labels.

        Args:
            sentences: N texts.
            topic_labels, sentiment_labels: one per sentence: a class id, a class name, or None where there is none.
            padding: ``"max_length"``, or ``"longest"``: to the longest sentence.
            labels: {task: one per sentence} of any tasks.

        Returns:
            ``input_ids``, ``attention_mask`` and ``token_type_ids``, int32 ``(N, L)``, and ``{task}_labels`` int32
            ``(N,)``, -100 for None, for each task whose labels were given.

        Raises:
            ValueError: labels of another number, of an unknown class or task, of one task twice, or an unknown padding.
        """
        if padding not in PADDINGS:
            raise ValueError(f"[mtl] expected padding to be one of {', '.join(PADDINGS)} but got {padding!r}.")
        if not len(sentences):
            raise ValueError("[mtl] expected at least one sentence but got none.")
        given = {"topic": topic_labels, "sentiment": sentiment_labels}
        given = {task: values for task, values in given.items() if values is not None}
        if twice := sorted(given.keys() & (labels or {}).keys()):
            raise ValueError(f"[mtl] expected labels of {twice[0]!r} once but got {twice[0]}_labels and labels.")
        given |= labels or {}
        encodings = self.tokenizer.encode(sentences, max_length=self.max_length)
        multiple = self.max_length if padding == "max_length" else None
        batch = self.tokenizer.pad(encodings, multiple)
        shape = batch.input_ids.shape
        mask = mx.ones(shape, mx.int32) if batch.attention_mask is None else batch.attention_mask.astype(mx.int32)
        types = mx.zeros(shape, mx.int32) if batch.token_type_ids is None else batch.token_type_ids
        prepared = {"input_ids": batch.input_ids, "attention_mask": mask, "token_type_ids": types}
        for task, values in given.items():
            if values is not None:
                prepared[f"{task}_labels"] = mx.array(self.label_ids(task, values, len(sentences)))
        return prepared

    def label_ids(self, task: str, values: Sequence[Any], count: int) -> np.ndarray:
        """Class ids int32 ``(count,)`` of labels given as ids, names or None (-100).

        Raises:
            ValueError: an unknown task or class, or another number of labels.
        """
        if task not in self.labels:
            raise ValueError(f"[mtl] expected labels of {', '.join(self.labels)} but got labels of {task!r}.")
        if len(values) != count:
            raise ValueError(f"[mtl] expected {count} labels of {task!r}, one per sentence, but got {len(values)}.")
        return np.array([label_id(self.labels[task], task, value) for value in values], dtype=np.int32)


def label_map(task: str, classes: Classes) -> LabelMap:
    """The classes of a task from their number or their names.

    Raises:
        ValueError: fewer than two, or a task name that cannot be part of a parameter's name, or of an example.
    """
    if not isinstance(task, str) or not task or "." in task or "/" in task or task.isdigit():
        raise ValueError(f"[mtl] expected task names without dots and slashes that are no numbers but got {task!r}.")
    if task in EXAMPLE_KEYS:
        raise ValueError(f"[mtl] expected task names other than {', '.join(EXAMPLE_KEYS)} but got {task!r}. Rename it.")
    if isinstance(classes, Sequence) and not isinstance(classes, str) and len(classes) == 1:
        (classes,) = classes
    if isinstance(classes, int) and not isinstance(classes, bool):
        known = next((names for name, names in (("topic", TOPICS), ("sentiment", SENTIMENTS)) if name == task), ())
        names = known if len(known) == classes else tuple(str(number) for number in range(classes))
    elif isinstance(classes, str) or not isinstance(classes, Sequence):
        raise ValueError(f"[mtl] expected the number or the names of the classes of {task!r} but got {classes!r}.")
    else:
        names = tuple(classes)
    if len(names) < 2:
        raise ValueError(f"[mtl] expected at least two classes for {task!r} but got {len(names)}.")
    return LabelMap(names)


def label_id(labels: LabelMap, task: str, value: Any) -> int:
    """The id of a label that is given as an id, a name or None (-100).

    Raises:
        ValueError: no such class.
    """
    if value is None:
        return IGNORE_INDEX
    if isinstance(value, str):
        try:
            return labels.index(value)
        except ValueError as error:
            raise ValueError(f"[mtl] {task}: {error}. Correct the label.") from None
    is_id = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_id or not (0 <= value < len(labels) or value == IGNORE_INDEX):
        raise ValueError(f"[mtl] {task}: expected a class id from 0 to {len(labels) - 1} or a name but got {value!r}.")
    return int(value)


def encoder_folder(source: str | Path) -> Path:
    """A folder with an encoder: that of a saved model has it inside."""
    folder = Path(source)
    return folder / ENCODER_FOLDER if (folder / CONFIG_FILE).is_file() else ready_folder(source)
