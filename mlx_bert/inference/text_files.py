"""Texts from files and pipes, one at a time: the file never is in memory as a whole.

Plain text has one text a line; JSON Lines and CSV name the field to read.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

JSON_LINES = (".jsonl", ".ndjson")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
KINDS = (".txt", *JSON_LINES, *DELIMITERS)


def text_reader(path: str | Path, column: str = "text") -> Callable[[], Iterator[str]]:
    """What reads a file's texts, chosen by its ending and checked before anything else is done.

    Args:
        path: ``.txt``, ``.jsonl``, ``.ndjson``, ``.csv`` or ``.tsv`` (with a header line), in UTF-8.
        column: field or column of the text.

    Returns:
        A function; each call reads the file from its start.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another ending. While reading: not UTF-8, or a bad row, with its line.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if not path.is_file():
        raise FileNotFoundError(f"[embed] {path} does not exist. Give a file of texts: {', '.join(KINDS)}.")
    if kind not in KINDS:
        raise ValueError(f"[embed] expected a file ending in {', '.join(KINDS)} but got {path}. Rename or convert it.")

    def read() -> Iterator[str]:
        with path.open(encoding="utf-8-sig", newline="" if kind in DELIMITERS else None) as lines:
            try:
                if kind in JSON_LINES:
                    yield from json_texts(lines, column, str(path))
                elif kind in DELIMITERS:
                    yield from _table_texts(lines, column, DELIMITERS[kind], str(path))
                else:
                    yield from line_texts(lines)
            except UnicodeDecodeError:
                raise ValueError(f"[embed] {path} is not UTF-8. Save it in UTF-8.") from None

    return read


def line_texts(lines: Iterable[str]) -> Iterator[str]:
    """Each line without its end. An empty line is an empty text: the order of results stays that of the lines."""
    for line in lines:
        yield line.rstrip("\r\n")


def json_texts(lines: Iterable[str], field: str, name: str) -> Iterator[str]:
    """The field of each line's JSON object; blank lines are passed over."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply")
            raise ValueError(f"[embed] {name} line {number} is not valid JSON ({reason}). Correct it.") from None
        if not isinstance(row, dict) or field not in row:
            has = f"has {', '.join(map(repr, row))}" if isinstance(row, dict) else "is no JSON object"
            raise ValueError(f"[embed] expected field {field!r} in {name} line {number}, which {has}. Name the field.")
        if not isinstance(row[field], str):
            kind = type(row[field]).__name__
            raise ValueError(f"[embed] expected text in field {field!r} of {name} line {number} but got {kind}.")
        yield row[field]


def _table_texts(lines: Iterable[str], column: str, delimiter: str, name: str) -> Iterator[str]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        if column not in header:
            raise ValueError(
                f"[embed] {name} has no column {column!r}. It has {', '.join(map(repr, header)) or 'none'}. "
                "Name the column."
            )
        place = header.index(column)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"[embed] {name} line {reader.line_num} has {len(cells)} fields where the header has {len(header)}."
                )
            yield cells[place]
    except csv.Error as error:
        raise ValueError(f"[embed] {name} line {reader.line_num} is not valid CSV ({error}).") from None
