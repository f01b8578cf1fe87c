"""Texts from files and pipes, one at a time: the file never is in memory as a whole.

Plain text has one text a line; JSON Lines, CSV and Parquet name the field to read, and may have an id beside it.
"""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

JSON_LINES = (".jsonl", ".ndjson")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET = ".parquet"
KINDS = (".txt", *JSON_LINES, *DELIMITERS, PARQUET)
ID = "id"
LONGEST_CELL = 1 << 30  # csv's own limit is 128 KiB, which a long document exceeds


class Record(NamedTuple):
    """A text, and what its file calls it."""

    text: str
    id: str | int | None = None


class TextFiles:
    """The texts of one or more files, in order; each iteration reads them from the start.

    Args:
        paths: files ending in ``.txt``, ``.jsonl``, ``.ndjson``, ``.csv``, ``.tsv`` (with a header line), all in UTF-8,
            or ``.parquet``; folders of such files; patterns such as ``"docs/*.jsonl"``. Files of a folder or pattern
            come in the order of their names.
        column: field or column of the text.
        id_column: field or column of the id. None takes ``id`` where every file has it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another ending, or no such column. While reading: not UTF-8, or a bad row, with its line.
        ImportError: a Parquet file, and pyarrow is missing.
    """

    def __init__(
        self, paths: str | Path | Sequence[str | Path], column: str = "text", id_column: str | None = None
    ) -> None:
        self.column = column
        self.paths = [path for given in ([paths] if isinstance(paths, str | Path) else paths) for path in _files(given)]
        found = [_fields(path) for path in self.paths]
        if id_column is not None:
            for path, fields in zip(self.paths, found, strict=True):
                if fields is not None and id_column not in fields:
                    has = ", ".join(map(repr, fields)) or "none"
                    raise ValueError(f"[texts] {path} has no id column {id_column!r}. It has {has}. Name the column.")
            self.id_column: str | None = id_column
        else:
            has_ids = all(fields is None or ID in fields for fields in found)
            self.id_column = ID if has_ids and any(found) and column != ID else None
        self._whole_ids = True

    def __iter__(self) -> Iterator[Record]:
        for path in self.paths:
            for text, name in self._read(path):
                yield Record(text, name if name is None or self._whole_ids else str(name))

    def check(self) -> int:
        """Read everything once, so that a bad row shows before any work is done; ids that are partly text become text.

        Returns:
            The number of texts.
        """
        count = 0
        for path in self.paths:
            for _, name in self._read(path):
                count += 1
                self._whole_ids &= not isinstance(name, str)
        return count

    def identity(self) -> list[list[str | int]]:
        """Name, size in bytes and time of change in nanoseconds of each file: what tells that they are the same."""
        stats = [(path, path.stat()) for path in self.paths]
        return [[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in stats]

    def _read(self, path: Path) -> Iterator[tuple[str, str | int | None]]:
        kind = path.suffix.lower()
        if kind == PARQUET:
            yield from _parquet_rows(path, self.column, self.id_column)
            return
        with path.open(encoding="utf-8-sig", newline="" if kind in DELIMITERS else None) as lines:
            try:
                if kind in JSON_LINES:
                    yield from _json_rows(lines, self.column, self.id_column, str(path))
                elif kind in DELIMITERS:
                    yield from _table_rows(lines, self.column, self.id_column, DELIMITERS[kind], str(path))
                else:
                    yield from ((record.text, None) for record in line_records(lines))
            except UnicodeDecodeError:
                raise ValueError(f"[texts] {path} is not UTF-8. Save it in UTF-8.") from None


def line_records(lines: Iterable[str]) -> Iterator[Record]:
    """Each line without its end. An empty line is an empty text: the order of results stays that of the lines."""
    for line in lines:
        yield Record(line.rstrip("\r\n"))


def _files(given: str | Path) -> list[Path]:
    """The files that a path, a folder or a pattern stands for."""
    path = Path(given)
    if path.is_dir():
        found = sorted(entry for entry in path.iterdir() if entry.is_file() and entry.suffix.lower() in KINDS)
        if not found:
            raise FileNotFoundError(f"[texts] the folder {path} has no file ending in {', '.join(KINDS)}.")
        return found
    if not path.is_file():
        matches = sorted(Path(match) for match in glob.glob(str(path)) if Path(match).is_file())
        if not matches:
            raise FileNotFoundError(f"[texts] {path} does not exist. Give a file of texts: {', '.join(KINDS)}.")
        return [file for match in matches for file in _files(match)]
    if path.suffix.lower() not in KINDS:
        raise ValueError(f"[texts] expected a file ending in {', '.join(KINDS)} but got {path}. Rename or convert it.")
    return [path]


def _fields(path: Path) -> list[str] | None:
    """The columns of a file, those of its first row in JSON Lines; None if it has no rows and no header."""
    kind = path.suffix.lower()
    if kind == ".txt":
        return []
    if kind == PARQUET:
        return list(_open_parquet(path).schema_arrow.names)
    with path.open(encoding="utf-8-sig", newline="", errors="replace") as lines:
        if kind in DELIMITERS:
            header = next(csv.reader(lines, delimiter=DELIMITERS[kind]), None)
            return header and [cell.strip() for cell in header]
        first = next((line for line in lines if line.strip()), None)
        try:
            row = json.loads(first or "null")
        except (json.JSONDecodeError, RecursionError):
            row = None  # reading says what is wrong with it
        return list(row) if isinstance(row, dict) else None


def _checked_id(value: Any, place: str) -> str | int:
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ValueError(f"[texts] expected an id that is text or a whole number in {place} but got {value!r}.")


def _json_rows(
    lines: Iterable[str], field: str, id_field: str | None, name: str
) -> Iterator[tuple[str, str | int | None]]:
    """The field of each line's JSON object; blank lines are passed over."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply")
            raise ValueError(f"[texts] {name} line {number} is not valid JSON ({reason}). Correct it.") from None
        if not isinstance(row, dict) or field not in row:
            has = f"has {', '.join(map(repr, row))}" if isinstance(row, dict) else "is no JSON object"
            raise ValueError(f"[texts] expected field {field!r} in {name} line {number}, which {has}. Name the field.")
        if not isinstance(row[field], str):
            kind = type(row[field]).__name__
            raise ValueError(f"[texts] expected text in field {field!r} of {name} line {number} but got {kind}.")
        yield row[field], id_field and _checked_id(row.get(id_field), f"field {id_field!r} of {name} line {number}")


def _table_rows(
    lines: Iterable[str], column: str, id_column: str | None, delimiter: str, name: str
) -> Iterator[tuple[str, str | None]]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        if column not in header:
            raise ValueError(
                f"[texts] {name} has no column {column!r}. It has {', '.join(map(repr, header)) or 'none'}. "
                "Name the column."
            )
        place = header.index(column)
        id_place = None if id_column is None else header.index(id_column)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"[texts] {name} line {reader.line_num} has {len(cells)} fields where the header has {len(header)}."
                )
            yield cells[place], None if id_place is None else cells[id_place]
    except csv.Error as error:
        raise ValueError(f"[texts] {name} line {reader.line_num} is not valid CSV ({error}).") from None


def import_parquet() -> Any:
    """``pyarrow.parquet``.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise ImportError('[texts] Parquet files need pyarrow. Install it: pip install "mlx-bert[parquet]"') from None
    return pyarrow.parquet


def _open_parquet(path: Path) -> Any:
    parquet = import_parquet()
    try:
        return parquet.ParquetFile(path)
    except (ValueError, OSError) as error:  # pyarrow's errors are both
        raise ValueError(f"[texts] {path} is not valid Parquet ({error}).") from None


def _parquet_rows(path: Path, column: str, id_column: str | None) -> Iterator[tuple[str, str | int | None]]:
    columns = [column] if id_column is None else [column, id_column]
    with _open_parquet(path) as file:
        names = file.schema_arrow.names
        if column not in names:
            raise ValueError(
                f"[texts] {path} has no column {column!r}. It has {', '.join(map(repr, names))}. Name the column."
            )
        number = 0
        for batch in file.iter_batches(1024, columns=columns):
            texts = batch.column(column).to_pylist()
            ids = [None] * len(texts) if id_column is None else batch.column(id_column).to_pylist()
            for number, (text, value) in enumerate(zip(texts, ids, strict=True), number + 1):  # noqa: B020
                if not isinstance(text, str):
                    kind = type(text).__name__
                    raise ValueError(
                        f"[texts] expected text in column {column!r} of {path} row {number} but got {kind}."
                    )
                yield text, id_column and _checked_id(value, f"column {id_column!r} of {path} row {number}")
