"""The options that name several tasks, and reading their data."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlx_bert.cli.config_file import Assignments

TABLE_KEYS = ("train", "eval", "text-column", "label-column", "weight")


def task_assignment(text: str) -> tuple[str, str]:
    """``TASK=COLUMN`` or ``TASK=DATA``; a task alone is its own column."""
    name, equals, value = text.partition("=")
    if not name or (equals and not value):
        raise argparse.ArgumentTypeError(f"expected TASK=COLUMN or TASK=DATA but got {text!r}")
    return name, value or name


class Tasks(Assignments):
    """Collects several ``TASK=VALUE`` after one option."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        for value in values:
            super().__call__(parser, namespace, value, option)


def add_task_arguments(group: Any) -> None:
    """The option for models of several tasks."""
    group.add_argument(
        "--tasks", action=Tasks, type=task_assignment, nargs="+", metavar="TASK=COLUMN",
        help="multi_task, sentence_mtl: the tasks and the column of each; a cell may be empty. In a file for --config "
        "also tables [tasks.NAME] with train, eval, text-column, label-column and weight, for a file per task",
    )  # fmt: skip


def read_task_rows(source: str, tasks: Mapping[str, str], args: argparse.Namespace) -> Any:
    """Texts with ``label`` {task: name or None}, from a column per task."""
    from mlx_bert.data.readers import read_tasks

    return read_tasks(source, tasks, args.text_column, args.pair_column)


class TaskSource(NamedTuple):
    """Data of one or several tasks.

    Attributes:
        name: the task, or ``"columns"`` for the tasks that share ``--train``.
        tasks: task -> column.
        train, eval: the data; no ``eval`` for a part of ``train``.
        text_column: column of the text, or None.
        weights: task -> factor of its loss, where it is not 1.
    """

    name: str
    tasks: dict[str, str]
    train: str
    eval: str | None
    text_column: str | None
    weights: dict[str, float]

    @classmethod
    def of(cls, args: argparse.Namespace) -> list[TaskSource]:
        """The sources that the options name.

        Raises:
            ValueError: no tasks, or a table with unknown keys.
        """
        if not args.tasks:
            raise ValueError(
                f"[train] expected tasks with --task {args.task} but got none. Name them: --tasks intent=COLUMN ..., "
                "or tables [tasks.NAME] in the file of --config."
            )
        sources, shared, weights = [], {}, {}
        for task, given in args.tasks.items():
            table = {key.replace("_", "-"): value for key, value in given.items()} if isinstance(given, dict) else {}
            if unknown := sorted(set(table) - set(TABLE_KEYS)):
                raise ValueError(
                    f"[train] [tasks.{task}] has unknown keys {', '.join(unknown)}. Known: {', '.join(TABLE_KEYS)}."
                )
            own = {task: float(table["weight"])} if "weight" in table else {}
            file = table.get("train") or (given if isinstance(given, str) and _is_data(given) else None)
            if file is None:
                shared[task] = table.get("label-column") or (given if isinstance(given, str) else task)
                weights |= own
            else:
                column = table.get("label-column") or args.label_column or "label"
                text = table.get("text-column") or args.text_column
                sources.append(cls(task, {task: column}, file, table.get("eval"), text, own))
        if shared:
            if not args.train:
                raise ValueError(
                    f"[train] expected --train for the tasks {', '.join(shared)}, which are columns of it."
                )
            sources.insert(0, cls("columns", shared, args.train, args.eval, args.text_column, weights))
        return sources


def read_task_parts(
    sources: Sequence[TaskSource], args: argparse.Namespace, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and evaluation rows of all sources: ``text``, ``label`` {task: name or None}, ``source``."""
    from mlx_bert.data.readers import read_tasks
    from mlx_bert.data.splits import split_examples

    parts: tuple[list, list] = ([], [])
    for source in sources:

        def read(data: str, source: TaskSource = source) -> list[dict[str, Any]]:
            rows = read_tasks(data, source.tasks, source.text_column)
            return [{**row, "source": source.name, "classes": rows.classes} for row in rows]

        train = read(source.train)
        if source.eval:
            held_out = read(source.eval)
        else:
            strata = [tuple(sorted((task, str(name)) for task, name in row["label"].items())) for row in train]
            split = split_examples(strata, args.eval_size, 0.0, seed=seed)
            train, held_out = ([train[place] for place in places] for places in (split.train, split.validation))
        for part, rows in zip(parts, (train, held_out), strict=True):
            part += rows
    return parts


def task_labels(task: str, rows: list[dict[str, Any]]) -> Any:
    """The label map of a task: the classes that its source names, else those that rows have.

    Raises:
        ValueError: fewer than two.
    """
    from mlx_bert.data.labels import LabelMap

    found = [row["label"][task] for row in rows if row["label"].get(task) is not None]
    classes = next((row["classes"][task] for row in rows if task in row["classes"]), None)
    labels = LabelMap(classes) if classes else LabelMap.from_labels(found)
    if len(labels) < 2:
        raise ValueError(f"[train] expected at least 2 classes of the task {task} but got {list(labels.names)}.")
    return labels


def _is_data(value: str) -> bool:
    """Whether the value of a task is a source of data and not the name of a column."""
    return value.startswith("hub:") or Path(value.rpartition("@")[0] or value).exists()
