"""Labelled texts of several tasks: read, checked and split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_bert.data.labels import LabelMap
from mlx_bert.data.readers import Example, read_examples
from mlx_bert.data.sources import DELIMITERS, JSON_LINES, PARQUET, Source, is_dataset, records
from mlx_bert.data.splits import split_examples

TASK_FILES = (*DELIMITERS, *JSON_LINES, ".json", *PARQUET)
Splits = dict[str, list[Example]]


def read_task_data(data: Mapping[str, Source | Mapping[str, Any]]) -> list[Example]:
    """Check the texts of all tasks.

    Args:
        data: {task: rows with ``text`` and ``label``, or a file of them}; a file also as a dict with its ``path``.

    Returns:
        One dict per row with ``text``, ``label`` (a string) and ``task``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no data, or bad rows.
    """
    wanted = "{task: [{'text': ..., 'label': ...}, ...]}"
    if data is None or (isinstance(data, Mapping) and not data):
        raise ValueError(f"No training data provided. Give {wanted}.")
    if not isinstance(data, Mapping):
        raise ValueError(
            f"[multihead] expected {wanted} but got a {type(data).__name__}. Name the task of the rows; a folder of a "
            "file per task goes to data_save_dir."
        )
    examples = []
    for task, source in data.items():
        if isinstance(source, Mapping):
            if not isinstance(source.get("path"), str | Path):
                raise ValueError(
                    f"[multihead] expected rows, a file, or a dict with its path for the task {task!r} but got a dict "
                    f"with {', '.join(map(str, source)) or 'nothing'}. Give a list of rows."
                )
            source = source["path"]
        try:
            read = read_examples(source if isinstance(source, str | Path) else _with_names(source))
        except (ValueError, TypeError) as error:
            raise ValueError(f"[multihead] the data of the task {task!r} cannot be used: {error}") from None
        examples += [{**example, "task": task} for example in read]
    return examples


def _with_names(rows: Source) -> Source:
    """Rows whose labels, whatever they are, are strings; those of a data set, which may name them, as they are."""
    if is_dataset(rows):
        return rows
    return [
        {**row, "label": str(row["label"])} if isinstance(row, Mapping) and row.get("label") is not None else row
        for row in records(rows)
    ]


def task_files(folder: str | Path) -> dict[str, Path]:
    """The files of a folder by the tasks that they are named for: ``sentiment.json``, ``intent.csv``, ....

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no data file in it, or two of one task.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"[multihead] {folder} is no folder. Give one with a file for each task.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in TASK_FILES and path.is_file())
    if not files:
        raise ValueError(f"[multihead] {folder} has no file {{task}}{', '.join(TASK_FILES)}. Give one for each task.")
    found: dict[str, Path] = {}
    for path in files:
        if path.stem in found:
            raise ValueError(f"[multihead] {found[path.stem]} and {path} are of one task. Remove one of them.")
        found[path.stem] = path
    return found


def label_maps(examples: Sequence[Example]) -> dict[str, LabelMap]:
    """The labels of each task, in the order of their ids.

    Raises:
        ValueError: a task of a single label.
    """
    names: dict[str, set[str]] = {}
    for example in examples:
        names.setdefault(example["task"], set()).add(example["label"])
    for task, found in names.items():
        if len(found) < 2:
            raise ValueError(f"[multihead] the task {task!r} has a single label. There is nothing to tell apart.")
    return {task: LabelMap.from_labels(found) for task, found in names.items()}


def label_of(labels: Mapping[str, LabelMap], example: Example) -> int:
    """The id of an example's label.

    Raises:
        ValueError: an unknown task or label.
    """
    task = example["task"]
    try:
        return labels_of(labels, task).index(example["label"])
    except ValueError as error:
        raise error if task not in labels else ValueError(f"[multihead] {task}: {error}. Correct it.") from None


def labels_of(labels: Mapping[str, LabelMap], task: str) -> LabelMap:
    """The labels of a task.

    Raises:
        ValueError: no such task.
    """
    if task not in labels:
        raise ValueError(f"[multihead] expected task to be one of {', '.join(labels)} but got {task!r}.")
    return labels[task]


def split_tasks(
    examples: Sequence[Example],
    held_out: list[Example] | None,
    validation_size: float,
    test_size: float,
    seed: int,
) -> Splits:
    """``train``, ``validation`` and ``test``, stratified by task and label; see :func:`split_examples`.

    Args:
        examples: of all tasks.
        held_out: the validation examples; None to set some of ``examples`` aside.
        validation_size, test_size, seed: as for :func:`split_examples`.
    """
    parts = split_examples(
        [example["label"] for example in examples],
        validation_size if held_out is None else 0.0,
        test_size,
        [example["task"] for example in examples],
        seed,
    )
    splits = {name: [examples[index] for index in indices] for name, indices in parts._asdict().items()}
    return splits if held_out is None else {**splits, "validation": held_out}


def data_digest(*parts: Sequence[Example] | None) -> str:
    """A short digest of examples: the same for the same texts, labels and tasks in the same order."""
    rows = [part and [[example["task"], example["label"], example["text"]] for example in part] for part in parts]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
