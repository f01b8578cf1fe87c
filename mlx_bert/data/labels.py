"""Names of classes <-> indices, explicit and saved with the model; class weights for unbalanced data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from heads.class_weights import class_weights_from_counts
from mlx_bert.data.kinds import Example
from mlx_bert.data.sources import Problems


@dataclass(frozen=True)
class LabelMap:
    """The classes of a task, in the order of the head's outputs.

    Args:
        names: one name per class, all different.
    """

    names: tuple[str, ...]
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = tuple(str(name) for name in self.names)
        if not names or len(set(names)) != len(names):
            raise ValueError(f"[labels] expected different names, at least one, but got {list(names)}. Correct them.")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "_index", {name: index for index, name in enumerate(names)})

    @classmethod
    def from_labels(cls, labels: Iterable[str | Sequence[str]]) -> LabelMap:
        """The map of all names that occur: whole numbers in numeric order, other names alphabetically.

        Args:
            labels: one name per example, or a list of names per example.
        """
        names = {name for label in labels for name in ([label] if isinstance(label, str) else label)}
        numeric = all(name.lstrip("-").isdecimal() for name in names)
        return cls(tuple(sorted(names, key=lambda name: (int(name) if numeric else 0, name))))

    @classmethod
    def from_dict(cls, id2label: Mapping[Any, str]) -> LabelMap:
        """The map that a config's ``id2label`` describes (keys ``"0"``, ``"1"``, ... or numbers).

        Raises:
            ValueError: the keys are not 0 to n - 1.
        """
        try:
            by_index = {int(index): str(name) for index, name in id2label.items()}
        except (TypeError, ValueError):
            by_index = {}
        if not by_index or sorted(by_index) != list(range(len(by_index))):
            raise ValueError(
                f"[labels] expected id2label with the keys 0 to n - 1 but got {dict(id2label)}. Correct it."
            )
        return cls(tuple(by_index[index] for index in range(len(by_index))))

    def to_dict(self) -> dict[str, str]:
        """``id2label`` as configs spell it, with string keys."""
        return {str(index): name for index, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """The index of a class.

        Raises:
            ValueError: no such class.
        """
        if name not in self._index:
            known = ", ".join(self.names[:12]) + (", ..." if len(self.names) > 12 else "")
            raise ValueError(f"unknown label {name!r}; known: {known}")
        return self._index[name]


def encode_labels(
    examples: Sequence[Example], labels: LabelMap, multilabel: bool = False, name: str = "the data"
) -> list[Example]:
    """Add ``labels``, what the head takes, to each example: a class index, or 0.0 and 1.0 per class.

    Raises:
        ValueError: labels that the map does not know, all of them with their lines.
    """
    problems, encoded = Problems(name), []
    for example in examples:
        given = example["label"]
        try:
            if multilabel:
                target: Any = np.zeros(len(labels), dtype=np.float32)
                target[[labels.index(label) for label in given]] = 1.0
            else:
                target = labels.index(given)
        except ValueError as error:
            problems.add(example.get("line", 0), str(error))
        else:
            encoded.append({**example, "labels": target})
    problems.raise_if_any()
    return encoded


def class_numbers(examples: Sequence[Example], name: str, tasks: Sequence[str] | None = None) -> list[Example]:
    """Examples whose ``labels`` are numbers of classes, whole floats such as 1.0 as int.

    Args:
        examples: with ``labels``: a number, an array of them, or {task: labels}.
        name: what messages call them.
        tasks: of labels in a dict, those that are classes; None for labels that are none.

    Raises:
        ValueError: labels that are no whole numbers, all of them with their lines (else their places, from 0).
    """
    problems = Problems(name, "line" if examples and "line" in examples[0] else "example")

    def whole(labels: Any) -> Any:
        values = np.asarray(labels)
        if values.dtype.kind != "f":
            return labels
        if (fractions := values[values != np.floor(values)]).size:
            raise ValueError(f"expected a class, a whole number, as label but got {fractions.flat[0]}")
        return values.astype(np.int32) if values.ndim else int(values)

    checked = []
    for place, example in enumerate(examples):
        labels = example["labels"]
        try:
            if tasks is not None:
                labels = {task: whole(own) if task in tasks else own for task, own in labels.items()}
            else:
                labels = whole(labels)
        except ValueError as error:
            problems.add(example.get("line", place), str(error))
        checked.append(example if labels is example["labels"] else {**example, "labels": labels})
    problems.raise_if_any()
    return checked


def class_weights(counts: Sequence[int]) -> list[float]:
    """Weights against imbalance: ``N / (K n_c)`` over their mean, kept within [0.5, 3].

    Args:
        counts: examples per class in the training data; a class without any counts as one.
    """
    return class_weights_from_counts(counts, clamp=(0.5, 3.0)).tolist()


def positive_weights(counts: Sequence[int], total: int) -> list[float]:
    """Factors on the positives of each label, for labels that few examples have: ``(N - n_c) / n_c`` within [0.5, 3].

    Args:
        counts: examples that have each label; none counts as one.
        total: N, examples.
    """
    positives = np.maximum(np.asarray(counts, dtype=np.float64), 1)
    return np.clip((total - positives) / positives, 0.5, 3.0).tolist()
