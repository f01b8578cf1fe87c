"""Labelled texts from CSV, TSV and JSON Lines files or from memory, checked in one pass.

Every bad row is reported with its line, not just the first. An example is a dict with ``text``, optionally
``text_pair`` and ``label``, and ``line`` (its place in the file, or its number in a list, from 1).
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

LABEL_KINDS = ("class", "multilabel", "number")
SHOWN_PROBLEMS = 10
DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")

Example = dict[str, Any]
Source = str | Path | Iterable[Mapping[str, Any]]


class Row(NamedTuple):
    """One row as it was read: the values, or what is wrong with it."""

    line: int
    values: Mapping[str, Any]
    problem: str | None = None


class Problems:
    """Collects what is wrong with the rows of one source and raises once, at the end."""

    def __init__(self, name: str, unit: str = "line") -> None:
        self.name = name
        self.unit = unit
        self.found: list[tuple[int, str]] = []

    def add(self, line: int, message: str) -> None:
        self.found.append((line, message))

    def raise_if_any(self) -> None:
        """Raise ValueError naming every bad row, up to a shown limit."""
        if not self.found:
            return
        shown = [f"  {self.unit} {line}: {message}" for line, message in self.found[:SHOWN_PROBLEMS]]
        if (hidden := len(self.found) - SHOWN_PROBLEMS) > 0:
            shown.append(f"  and {hidden} more")
        count = f"{len(self.found)} bad row{'s' if len(self.found) > 1 else ''}"
        raise ValueError(f"[data] {self.name} has {count}. Correct or remove them.\n" + "\n".join(shown))


def read_examples(
    source: Source,
    text_column: str = "text",
    label_column: str | None = "label",
    pair_column: str | None = None,
    label_kind: str = "class",
    label_separator: str = "|",
) -> list[Example]:
    """Read and check labelled texts.

    Args:
        source: a ``.csv``, ``.tsv`` (with a header line), ``.jsonl`` or ``.ndjson`` file in UTF-8, or dicts.
        text_column: column of the text.
        label_column: column of the label; None for texts without labels.
        pair_column: column of the second text of a pair.
        label_kind: ``"class"`` (one name each, kept as a string), ``"multilabel"`` (a list of names, or names joined
            by ``label_separator``; may be empty) or ``"number"`` (a finite number, or a list of them).
        label_separator: what joins the names of a multi-label cell.

    Returns:
        One dict per row: ``text``, ``text_pair``, ``label`` (those asked for) and ``line``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file type, a missing column, no rows, or bad rows (all of them, with their lines).
    """
    if label_kind not in LABEL_KINDS:
        raise ValueError(f"[data] expected label_kind to be one of {', '.join(LABEL_KINDS)} but got {label_kind!r}.")
    rows, name, unit = _rows(source)
    if not rows:
        raise ValueError(f"[data] {name} has no rows. Give at least one example.")
    wanted = {"text": text_column, "text_pair": pair_column, "label": label_column}
    wanted = {key: column for key, column in wanted.items() if column is not None}
    columns = list(dict.fromkeys(column for row in rows for column in row.values))
    if not columns:  # nothing could be parsed: the problems say more than a missing column would
        columns = list(wanted.values())
    if missing := [column for column in wanted.values() if column not in columns]:
        raise ValueError(
            f"[data] {name} has no column {', '.join(map(repr, missing))}. It has {', '.join(map(repr, columns))}. "
            "Name the columns of the text and the label."
        )
    problems, examples = Problems(name, unit), []
    for row in rows:
        if row.problem:
            problems.add(row.line, row.problem)
            continue
        example: Example = {"line": row.line}
        try:
            for key, column in wanted.items():
                if column not in row.values:
                    raise ValueError(f"column {column!r} is missing")
                value = row.values[column]
                example[key] = (
                    _label(value, column, label_kind, label_separator) if key == "label" else _text(value, column)
                )
        except ValueError as error:
            problems.add(row.line, str(error))
        else:
            examples.append(example)
    problems.raise_if_any()
    return examples


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text in column {column!r} but got {_shown(value)}")
    if not value.strip():
        raise ValueError(f"empty text in column {column!r}")
    return value


def _label(value: Any, column: str, kind: str, separator: str) -> Any:
    if kind == "multilabel":
        names = value.split(separator) if isinstance(value, str) else value
        if not isinstance(names, (list, tuple)):
            raise ValueError(f"expected a list of labels in column {column!r} but got {_shown(value)}")
        return [_class_name(name, column) for name in names if not (isinstance(name, str) and not name.strip())]
    if kind == "number":
        if isinstance(value, (list, tuple)):
            return [_number(item, column) for item in value]
        return _number(value, column)
    return _class_name(value, column)


def _class_name(value: Any, column: str) -> str:
    if isinstance(value, float) and value.is_integer():  # what other tools write for a column of whole numbers
        value = int(value)
    if not isinstance(value, (str, int)):
        raise ValueError(f"expected a class name in column {column!r} but got {_shown(value)}")
    name = str(value).strip()
    if not name:
        raise ValueError(f"empty label in column {column!r}")
    return name


def _number(value: Any, column: str) -> float:
    try:
        number = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number in column {column!r} but got {_shown(value)}")
    return number


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


# --- sources ----------------------------------------------------------------------------------------------------------


def read_table(source: Source) -> list[dict[str, Any]]:
    """All columns of a source, unchecked but for its form: one dict per row.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file type, or rows that cannot be parsed (all of them, with their lines).
    """
    rows, name, unit = _rows(source)
    problems = Problems(name, unit)
    for row in rows:
        if row.problem:
            problems.add(row.line, row.problem)
    problems.raise_if_any()
    return [dict(row.values) for row in rows]


def _rows(source: Source) -> tuple[list[Row], str, str]:
    """The rows of a source, its name and what its rows are counted in."""
    if not isinstance(source, (str, Path)):
        return [_memory_row(number, item) for number, item in enumerate(source, 1)], "the data in memory", "example"
    path = Path(source)
    suffix = path.suffix.lower()
    if not path.is_file():
        raise FileNotFoundError(f"[data] {path} does not exist. Give a .csv, .tsv or .jsonl file.")
    if suffix not in DELIMITERS and suffix not in JSON_LINES:
        known = ", ".join([*DELIMITERS, *JSON_LINES])
        raise ValueError(f"[data] expected a file ending in {known} but got {path}. Convert or rename it.")
    text = _decode(path)
    rows = list(_json_lines(text) if suffix in JSON_LINES else _delimited(text, DELIMITERS[suffix], str(path)))
    return rows, str(path), "line"


def _memory_row(number: int, item: Any) -> Row:
    if not isinstance(item, Mapping):
        return Row(number, {}, f"expected a dict but got {_shown(item)}")
    return Row(number, item)


def _decode(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"[data] {path} line {line} is not UTF-8. Save the file in UTF-8.") from None


def _json_lines(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            yield Row(number, {}, f"not valid JSON ({getattr(error, 'msg', 'nested too deeply')})")
            continue
        if isinstance(values, dict):
            yield Row(number, values)
        else:
            yield Row(number, {}, f"expected a JSON object but got {_shown(values)}")


def _delimited(text: str, delimiter: str, name: str) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: Sequence[str] | None = None
    start = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # the rest cannot be told apart any more
            yield Row(start, {}, f"not valid CSV ({error}); is a quote left open?")
            return
        line, start = start, reader.line_num + 1
        if not cells:
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            if twice := sorted({column for column in header if header.count(column) > 1}):
                raise ValueError(f"[data] {name} names columns {', '.join(map(repr, twice))} twice. Rename one.")
        elif len(cells) != len(header):
            yield Row(line, {}, f"expected {len(header)} fields as in the header but got {len(cells)}")
        else:
            yield Row(line, dict(zip(header, cells, strict=True)))
