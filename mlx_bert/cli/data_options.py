"""The options that say where data are and what their columns are called, and reading by them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from mlx_bert.cli.config_file import Assignments, assignment

SOURCES = (
    ".csv, .tsv, .jsonl, .json, .parquet or .conll file, folder of a saved data set, or hub:NAME[:CONFIG]; the last "
    "two may end in @SPLIT"
)


def add_data_arguments(group: Any, label: bool = True) -> None:
    """The options that name columns, shared by the verbs that read data."""
    group.add_argument("--text-column", metavar="NAME", help="column of the text (default: text, or sentence)")
    group.add_argument("--pair-column", metavar="NAME", help="column of the second text, for pairs")
    if label:
        group.add_argument(
            "--label-column", "--target", metavar="NAME",
            help="column of the label (default: label); several joined by commas: numbers, or labels of 0 and 1",
        )  # fmt: skip
    group.add_argument(
        "--label-separator",
        default="|",
        metavar="TEXT",
        help="joins several labels, or choices, in a cell (default: |)",
    )
    group.add_argument(
        "--column", dest="columns", action=Assignments, type=assignment, metavar="ROLE=NAME",
        help="column of another role, such as tokens, tags, question, context, answers, choices, documents, labels, "
        "anchor, positive, negative, score or weight; may be given several times",
    )  # fmt: skip


def read_rows_of(source: str, kind: str, args: argparse.Namespace, labelled: bool = True) -> Any:
    """The checked examples of a source, by the columns that the command line names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: bad rows, all with their lines, or a column for a role that the kind does not have.
    """
    from mlx_bert.data.readers import read_kind

    return read_kind(source, kind, columns_of(kind, args), args.label_separator, labelled)


def stream_rows_of(source: str, kind: str, args: argparse.Namespace, window: int) -> Iterator[list[dict[str, Any]]]:
    """:func:`read_rows_of` without labels, ``window`` examples at a time: for sources of any size."""
    from mlx_bert.data.readers import stream_kind

    return stream_kind(source, kind, columns_of(kind, args), args.label_separator, labelled=False, window=window)


def columns_of(kind: str, args: argparse.Namespace) -> dict[str, str]:
    """Role -> the column that the command line names for it."""
    from mlx_bert.data.kinds import KINDS

    fields = KINDS[kind].fields
    target = next((role for role, field in fields.items() if field.target), None)
    first = next(iter(fields))
    given = {first: args.text_column, "text_pair": args.pair_column}
    if target is not None:
        given[target] = getattr(args, "label_column", None)
    elif getattr(args, "label_column", None):
        raise ValueError(f"[data] expected no --label-column for examples of the kind {kind}: they have no labels.")
    return {role: name for role, name in {**given, **(args.columns or {})}.items() if name is not None}
