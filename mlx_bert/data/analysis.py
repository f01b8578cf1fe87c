"""Look at a data set and say what kind of task it is: target, task, columns, balance, recommended settings.

The rules are explicit and short, and the report says which one spoke; every finding can be overridden by the caller.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mlx_bert.data.kinds import is_empty
from mlx_bert.data.labels import LabelMap, class_weights, positive_weights
from mlx_bert.data.readers import read_table

TARGET_NAMES = (
    "target",
    "label",
    "labels",
    "y",
    "class",
    "outcome",
    "result",
    "survived",
    "transported",
    "price",
    "score",
    "rating",
)
GROUP_NAMES = ("query_id", "group_id", "qid")
RELEVANCE_NAMES = ("relevance", "rel", "grade", "label", "target", "score")
ORDERED_NAMES = ("rating", "grade", "score", "stars", "level")
SAMPLE_ROWS = 1000  # values looked at to tell a column's type
MAX_INTEGER_CLASSES = 10
MAX_CLASSES = 1000
FEW_ROWS = 1000
_NAME_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # user_id, userId, UserID


@dataclass
class DatasetAnalysis:
    """What :func:`analyze_dataset` found.

    Attributes:
        competition_type: the kind of task, a value of ``heads.CompetitionType``.
        reason: the rule that decided it, in words.
        num_samples, num_features: rows; columns besides the target.
        target_column: the target, or the targets of a multi-label table joined by commas.
        target_columns: the same as a list.
        num_classes: classes or labels; 1 for a number.
        classes: names of the classes, in the order of their ids; empty for a number.
        class_distribution: class -> rows.
        is_balanced: the rarest class has more than a tenth of the most frequent one's rows.
        text_columns, categorical_columns, numerical_columns, datetime_columns, id_columns: by what they hold.
        recommended_batch_size, recommended_learning_rate: for fine-tuning.
    """

    competition_type: str
    reason: str
    num_samples: int
    num_features: int
    target_columns: list[str]
    num_classes: int
    classes: list[str] = field(default_factory=list)
    class_distribution: dict[str, int] = field(default_factory=dict)
    text_columns: list[str] = field(default_factory=list)
    categorical_columns: list[str] = field(default_factory=list)
    numerical_columns: list[str] = field(default_factory=list)
    datetime_columns: list[str] = field(default_factory=list)
    id_columns: list[str] = field(default_factory=list)

    @property
    def target_column(self) -> str:
        return ",".join(self.target_columns)

    @property
    def is_balanced(self) -> bool:
        counts = self.class_distribution.values()
        return not counts or min(counts) / max(counts) > 0.1

    @property
    def head_type(self) -> str:
        """The head that suits the task."""
        return self.competition_type

    @property
    def recommended_batch_size(self) -> int:
        return 16 if self.num_samples < 5000 else 32 if self.num_samples <= 100_000 else 64

    @property
    def recommended_learning_rate(self) -> float:
        return 2e-5 if self.is_balanced else 1e-5

    def recommended_head_options(self) -> dict[str, Any]:
        """Options of the head: pooling and dropout by size, weights of rare classes by balance."""
        options: dict[str, Any] = {"dropout_prob": 0.1 if self.num_samples > 10_000 else 0.2}
        if self.num_samples > 5000:
            options["pooling_type"] = "attention"
        if not self.is_balanced:
            counts = [self.class_distribution[name] for name in self.classes]
            if self.competition_type == "multilabel_classification":
                options["pos_weight"] = positive_weights(counts, self.num_samples)
            else:
                options["class_weights"] = class_weights(counts)
        return options

    def recommended_training_settings(self, num_layers: int | None = None) -> dict[str, Any]:
        """Settings of ``TrainingArgs`` by size and balance: ``TrainingArgs(**settings)``.

        Args:
            num_layers: the encoder's layers, for ``freeze``; None leaves it out.
        """
        settings = {"batch_size": self.recommended_batch_size, "learning_rate": self.recommended_learning_rate}
        layers = self.recommended_frozen_layers(num_layers or 0)
        return {**settings, "freeze": str(layers)} if layers else settings

    def recommended_frozen_layers(self, num_layers: int) -> int:
        """Bottom layers to keep fixed: half of them below 1,000 rows, which would rather spoil them."""
        return num_layers // 2 if self.num_samples < FEW_ROWS else 0

    def __str__(self) -> str:
        lines = [
            f"task: {self.competition_type} ({self.reason})",
            f"target: {self.target_column}, {self.num_classes} {'classes' if self.classes else 'value'}",
            f"rows: {self.num_samples}, other columns: {self.num_features}",
        ]
        for kind in ("text", "categorical", "numerical", "datetime", "id"):
            if columns := getattr(self, f"{kind}_columns"):
                lines.append(f"{kind} columns: {', '.join(columns)}")
        if self.class_distribution:
            common = sorted(self.class_distribution.items(), key=lambda item: -item[1])[:8]
            shown = ", ".join(f"{name} {count}" for name, count in common)
            lines.append(f"{'balanced' if self.is_balanced else 'unbalanced'}: {shown}")
        options = self.recommended_head_options()
        head = f"dropout {options['dropout_prob']}, {options.get('pooling_type', 'default')} pooling"
        weighted = "" if self.is_balanced else ", rare classes weighted"
        lines.append(f"head: {head}{weighted} (by {self.num_samples} rows{' and the balance' if weighted else ''})")
        frozen = "half of the layers fixed, " if self.num_samples < FEW_ROWS else ""
        training = f"batch {self.recommended_batch_size}, learning rate {self.recommended_learning_rate}"
        frozen = ", half of the layers fixed" if self.num_samples < FEW_ROWS else ""
        lines.append(f"training: {training}{frozen} (TrainingArgs(**recommended_training_settings()))")
        return "\n".join(lines)


def analyze_dataset(
    source: str | Path | Sequence[Mapping[str, Any]], target_column: str | None = None
) -> DatasetAnalysis:
    """Find target and task of a table.

    Args:
        source: a file, folder or data set as :func:`mlx_bert.data.sources.read_rows` takes it, or dicts.
        target_column: the target; None to find it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no rows, no such column, or a target without a usable value.
    """
    rows = read_table(source)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not rows or not columns:
        raise ValueError(f"[analysis] {_shown(source)} has no rows. Give at least two labelled examples.")
    if target_column is not None and target_column not in columns:
        raise ValueError(f"[analysis] {_shown(source)} has no column {target_column!r}. It has {', '.join(columns)}.")
    kinds = {column: column_kind(column, [row.get(column) for row in rows]) for column in columns}
    targets = [target_column] if target_column is not None else find_targets(columns, rows)
    values = [row.get(targets[0]) for row in rows]
    if any(is_empty(value) for value in values):
        line = next(number for number, value in enumerate(values, 1) if is_empty(value))
        raise ValueError(f"[analysis] the target {targets[0]!r} is empty in row {line}. Fill or remove such rows.")
    kind, reason = infer_task(targets, values, columns, kinds)
    analysis = DatasetAnalysis(kind, reason, len(rows), len(columns) - len(targets), targets, 1)
    for column in columns:
        if column not in targets:
            getattr(analysis, f"{kinds[column]}_columns").append(column)
    if len(targets) > 1:
        analysis.classes = targets
        analysis.class_distribution = {name: sum(_number(row.get(name)) == 1 for row in rows) for name in targets}
    elif kind == "multilabel_classification":
        counts = Counter(str(name) for value in values for name in value)
        analysis.classes, analysis.class_distribution = sorted(counts), dict(counts)
    elif kind not in ("regression", "time_series", "ranking"):
        counts = Counter(_class_name(value) for value in values)
        analysis.classes, analysis.class_distribution = list(LabelMap.from_labels(counts).names), dict(counts)
    analysis.num_classes = max(1, len(analysis.classes))
    return analysis


def find_targets(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The target by name, else several 0/1 columns at the end of the table, else the last column that may be one."""
    by_lower = {column.lower(): column for column in reversed(columns)}
    for name in TARGET_NAMES:
        if name in by_lower:
            return [by_lower[name]]
    flags = []
    for column in reversed(columns):
        if {_number(row.get(column)) for row in rows} != {0.0, 1.0}:
            break
        flags.append(column)
    if len(flags) > 1:
        return flags[::-1]
    last = columns[-1]
    if len(columns) < 2 or column_kind(last, [row.get(last) for row in rows]) in ("text", "id", "datetime"):
        raise ValueError(
            f"[analysis] found no target among the columns {', '.join(columns)}. Name it with target_column."
        )
    return [last]


def infer_task(
    targets: Sequence[str], values: Sequence[Any], columns: Sequence[str], kinds: Mapping[str, str]
) -> tuple[str, str]:
    """The kind of task that a target's values suggest, and why."""
    name, lower = targets[0], {column.lower() for column in columns}
    if len(targets) > 1:
        return "multilabel_classification", f"{len(targets)} columns of 0 and 1"
    if all(isinstance(value, list) for value in values):
        return "multilabel_classification", "the target holds lists of labels"
    numbers = [_number(value) for value in values]
    is_numeric = all(number is not None for number in numbers)
    group = next((column for column in GROUP_NAMES if column in lower), None)
    if group and is_numeric and name.lower() in RELEVANCE_NAMES:
        return "ranking", f"graded rows within each {group}"
    unique = set(numbers) if is_numeric else {str(value) for value in values}
    if len(unique) < 2:
        raise ValueError(f"[analysis] the target {name!r} has a single value. There is nothing to learn.")
    if len(unique) == 2:
        return "binary_classification", "the target has two values"
    if not is_numeric:
        if len(unique) > min(MAX_CLASSES, max(len(values) / 2, 3)):
            raise ValueError(
                f"[analysis] the target {name!r} has {len(unique)} different texts in {len(values)} rows, too many for "
                "classes. Name the target with target_column."
            )
        return "multiclass_classification", f"the target has {len(unique)} names"
    if any(kind == "datetime" for column, kind in kinds.items() if column not in targets):
        return "time_series", "a numeric target with a date column"
    whole = all(number == int(number) for number in numbers)
    if whole and len(unique) <= MAX_INTEGER_CLASSES:
        consecutive = max(unique) - min(unique) == len(unique) - 1
        if consecutive and name.lower() in ORDERED_NAMES:
            return "ordinal_regression", f"{len(unique)} consecutive grades"
        return "multiclass_classification", f"{len(unique)} different whole numbers"
    return "regression", "a numeric target"


def column_kind(name: str, values: Sequence[Any]) -> str:
    """``"text"``, ``"categorical"``, ``"numerical"``, ``"datetime"`` or ``"id"``."""
    sample = [value for value in values[:SAMPLE_ROWS] if not is_empty(value)]
    if not sample:
        return "categorical"
    words = [str(value) for value in sample]
    ratio = len(set(words)) / len(words)
    if "id" in map(str.lower, _NAME_PARTS.findall(name)) and len(set(map(str, values))) == len(values):
        return "id"
    if all(_number(value) is not None for value in sample):
        return "numerical"
    if all(_is_date(word) for word in words):
        return "datetime"
    if ratio > 0.8 or statistics.fmean(map(len, words)) > 50:
        return "text"
    return "categorical"


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _class_name(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _is_date(word: str) -> bool:
    try:
        datetime.fromisoformat(word)
    except ValueError:
        return False
    return True


def _shown(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else "the data"
