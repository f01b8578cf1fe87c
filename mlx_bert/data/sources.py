"""Rows of a data source, whatever its format: CSV, TSV, JSON Lines, JSON (SQuAD too), CoNLL, Parquet, datasets.

Every bad row is remembered with its line, not just the first. Where a format names the classes of a column (the
``ClassLabel`` of Hugging Face's ``datasets``, in memory, on disk or in a Parquet file), rows hold the names and
``classes`` their order.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

SHOWN_PROBLEMS = 10
DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
CONLL = (".conll", ".bio", ".iob", ".iob2")
PARQUET = (".parquet",)
FILES = (*DELIMITERS, *JSON_LINES, ".json", *CONLL, *PARQUET)
HUB = "hub:"
PARQUET_ROWS = 1024  # so many are decoded at a time

Source = str | Path | Iterable[Mapping[str, Any]]


class Row(NamedTuple):
    """One row as it was read: the values, or what is wrong with it."""

    line: int
    values: Mapping[str, Any]
    problem: str | None = None


class Table(NamedTuple):
    """The rows of a source.

    Attributes:
        rows: all of them, bad ones included.
        name: what messages call the source.
        unit: what its rows are counted in: ``"line"``, ``"row"`` or ``"example"``.
        classes: names of the classes of a column in the order of their ids, where the source says so.
    """

    rows: list[Row]
    name: str
    unit: str
    classes: Mapping[str, tuple[str, ...]]

    @property
    def columns(self) -> list[str]:
        """The names of all columns, in the order of their appearance."""
        return list(dict.fromkeys(column for row in self.rows for column in row.values))


class Scan(NamedTuple):
    """The rows of a source, read anew at each call.

    Attributes:
        read: gives the rows one at a time; but JSON, a single document, is in memory as a whole.
        name, unit, classes: as of a :class:`Table`.
    """

    read: Callable[[], Iterator[Row]]
    name: str
    unit: str
    classes: Mapping[str, tuple[str, ...]]

    def columns(self) -> list[str]:
        """The names of all columns, in the order of their appearance."""
        return list(dict.fromkeys(column for row in self.read() for column in row.values))


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


def read_rows(source: Source) -> Table:
    """The rows of a source.

    Args:
        source: a file by its ending (``.csv`` and ``.tsv`` with a header line, ``.jsonl``, ``.ndjson``, ``.json``,
            ``.conll``, ``.bio``, ``.iob``, ``.parquet``), text in UTF-8; a folder that ``datasets`` saved or can load;
            ``hub:NAME[:CONFIG]`` for a data set of the Hugging Face hub; a folder or hub name may end in ``@SPLIT``;
            a ``Dataset`` or ``DatasetDict``; a data frame; or dicts.

    Raises:
        FileNotFoundError: no such file.
        ImportError: Parquet without pyarrow, or a data set without ``datasets``.
        ValueError: another file type, a file that is not of its type, or a data set of several splits and none named.
    """
    scan = scan_rows(source)
    return Table(list(scan.read()), *scan[1:])


def scan_rows(source: Source) -> Scan:
    """The rows of a source one at a time, for sources of any size. Arguments and errors are those of `read_rows`."""
    if not isinstance(source, (str, Path)):
        if is_dataset(source):
            return _scan_dataset(source, None, "the data set in memory")
        items = records(source)
        return Scan(lambda: map(_memory_row, count(1), items), "the data in memory", "example", {})
    path = Path(source)
    if path.is_file():
        return _scan_file(path)
    name, split = split_of(str(source))
    if name.startswith(HUB):
        dataset, _, config = name.removeprefix(HUB).partition(":")
        return _scan_dataset(_load_dataset(dataset, config or None, split), split, str(source))
    if Path(name).is_dir():
        return _scan_dataset(_load_folder(Path(name), split), split, str(source))
    raise FileNotFoundError(
        f"[data] {source} does not exist. Give a file ({', '.join(FILES)}), a folder saved with datasets, or "
        f"{HUB}NAME[:CONFIG][@SPLIT] for a data set of the hub."
    )


def records(data: Iterable[Mapping[str, Any]]) -> list[Any]:
    """The rows of data in memory: dicts, a data set, or a data frame of pandas or polars.

    Raises:
        ValueError: a path, or a dict of columns.
    """
    if isinstance(data, (str, Path, Mapping)):
        given = f"a dict of {', '.join(map(str, data))}" if isinstance(data, Mapping) else repr(str(data))
        raise ValueError(
            f"[data] expected examples, a dict each, but got {given}. Read a file with "
            "mlx_bert.data.readers.read_examples; make a row of each example."
        )
    if hasattr(data, "to_dicts"):  # polars
        return data.to_dicts()
    return data.to_dict("records") if hasattr(data, "iterrows") else list(data)


def split_of(source: str) -> tuple[str, str | None]:
    """``name@split`` -> name and split; the split is None if none is named."""
    name, at, split = source.rpartition("@")
    return (name, split) if at and name and "/" not in split else (source, None)


def read_table(source: Source) -> list[dict[str, Any]]:
    """All columns of a source, unchecked but for its form: one dict per row.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file type, or rows that cannot be parsed (all of them, with their lines).
    """
    table = read_rows(source)
    problems = Problems(table.name, table.unit)
    for row in table.rows:
        if row.problem:
            problems.add(row.line, row.problem)
    problems.raise_if_any()
    return [dict(row.values) for row in table.rows]


def _memory_row(number: int, item: Any) -> Row:
    if not isinstance(item, Mapping):
        return Row(number, {}, f"expected a dict but got {shown(item)}")
    return Row(number, item)


def shown(value: Any) -> str:
    """A value as messages show it."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


# --- files ------------------------------------------------------------------------------------------------------------


def _scan_file(path: Path) -> Scan:
    suffix, name = path.suffix.lower(), str(path)
    if suffix in PARQUET:
        return _scan_parquet(path)
    if suffix not in FILES:
        raise ValueError(f"[data] expected a file ending in {', '.join(FILES)} but got {path}. Convert or rename it.")
    if suffix == ".json":
        return Scan(lambda: _json("".join(text_lines(path)), name), name, "example", {})
    if suffix in DELIMITERS:
        return Scan(lambda: _delimited(path, DELIMITERS[suffix]), name, "line", {})
    rows = _conll if suffix in CONLL else _json_lines
    return Scan(lambda: rows(text_lines(path)), name, "line", {})


def text_lines(path: Path, newline: str = "\n") -> Iterator[str]:
    """The lines of a UTF-8 file, with their ends."""
    with path.open(encoding="utf-8-sig", newline=newline) as file:
        try:
            yield from file
        except UnicodeDecodeError:
            with path.open("rb") as data:
                line = next(number for number, line in enumerate(data, 1) if not _is_utf8(line))
            raise ValueError(f"[data] {path} line {line} is not UTF-8. Save the file in UTF-8.") from None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _json_lines(lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
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
            yield Row(number, {}, f"expected a JSON object but got {shown(values)}")


def _json(text: str, name: str) -> Iterator[Row]:
    """A list of objects, alone or under ``data``; SQuAD's articles become a row per question."""
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        place = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise ValueError(f"[data] {name} is not valid JSON ({place}). A file of a row a line is .jsonl.") from None
    items = values.get("data") if isinstance(values, dict) else values
    if not isinstance(items, list):
        raise ValueError(
            f"[data] expected a list of objects in {name}, alone or under 'data', but got {shown(values)}."
        )
    if not any(isinstance(item, dict) and "paragraphs" in item for item in items):
        yield from (_memory_row(number, item) for number, item in enumerate(items, 1))
        return
    try:
        questions = [
            {"title": article.get("title"), "context": paragraph.get("context"), **question}
            for article in items
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f"[data] expected SQuAD's articles of paragraphs with qas in {name}. Correct it.") from None
    yield from (Row(number, values) for number, values in enumerate(questions, 1))


def _conll(lines: Iterable[str]) -> Iterator[Row]:
    """A token a line, its tag in the last column, an empty line after each sentence: ``tokens`` and ``tags``."""
    tokens: list[str] = []
    tags: list[str] = []
    first, problem = 1, None
    for number, line in enumerate(chain(lines, [""]), 1):
        line = line.rstrip("\r\n")
        if not line.strip() or line.startswith("-DOCSTART-"):
            if tokens or problem:
                yield Row(first, {"tokens": tokens, "tags": tags}, problem)
            tokens, tags, problem = [], [], None
            continue
        if re.match(r"#\s+\S+\s*=", line):  # what CoNLL-U says about a sentence
            continue
        cells = [cell.strip() for cell in line.split("\t")] if "\t" in line else line.split()
        if not tokens and not problem:
            first = number
        if len(cells) < 2 or not cells[0] or not cells[-1]:
            problem = problem or f"expected a token and its tag in line {number} but got {shown(line)}"
            continue
        tokens.append(cells[0])
        tags.append(cells[-1])


def _delimited(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), path.stat().st_size + 1))
    reader = csv.reader(text_lines(path, newline=""), delimiter=delimiter, strict=True)
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
                raise ValueError(f"[data] {path} names columns {', '.join(map(repr, twice))} twice. Rename one.")
        elif len(cells) != len(header):
            yield Row(line, {}, f"expected {len(header)} fields as in the header but got {len(cells)}")
        else:
            yield Row(line, dict(zip(header, cells, strict=True)))


# --- libraries that are extras ----------------------------------------------------------------------------------------


def _scan_parquet(path: Path) -> Scan:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError(f'[data] {path} needs pyarrow. Install it: pip install "mlx-bert[parquet]".') from None

    @contextmanager
    def opened() -> Iterator[Any]:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                yield file
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"[data] {path} cannot be read as Parquet: {error}. Write it again.") from None

    def items() -> Iterator[Mapping[str, Any]]:
        with opened() as file:
            for batch in file.iter_batches(PARQUET_ROWS):
                yield from batch.to_pylist()

    features: Mapping[str, Any] = {}
    with opened() as file:
        if written := (file.schema_arrow.metadata or {}).get(b"huggingface"):  # what datasets says of its columns
            features = json.loads(written).get("info", {}).get("features", {})
    return _named_rows(items, str(path), {name: _class_names(each) for name, each in features.items()})


def is_dataset(source: Any) -> bool:
    """Whether it is a ``Dataset`` or ``DatasetDict``."""
    return type(source).__module__.split(".")[0] == "datasets"


def _load_folder(path: Path, split: str | None) -> Any:
    """A data set from a folder of ``save_to_disk``, or from a folder of data files."""
    datasets = _datasets(path)
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        data = datasets.load_from_disk(str(path))
        if split is not None and not isinstance(data, Mapping) and str(data.split) != split:
            raise ValueError(f"[data] expected a split {split!r} but {path} is one data set. Leave @{split} out.")
        return data
    return _load_dataset(str(path), None, split)


def _load_dataset(name: str, config: str | None, split: str | None) -> Any:
    datasets = _datasets(name)
    try:
        return datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the library raises many kinds: no such data set, config or split, no network
        wanted = f"{name}{f':{config}' if config else ''}{f'@{split}' if split else ''}"
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise ValueError(f"[data] datasets cannot load {wanted}: {error}{cause}") from None


def _datasets(what: Any) -> Any:
    try:
        import datasets
    except ImportError:
        raise ImportError(f'[data] {what} needs datasets. Install it: pip install "mlx-bert[datasets]".') from None
    return datasets


def _scan_dataset(data: Any, split: str | None, name: str) -> Scan:
    if isinstance(data, Mapping):  # splits
        if split is None and len(data) == 1:
            (split,) = data
        if split not in data:
            wanted = "one split" if split is None else f"a split {split!r}"
            raise ValueError(
                f"[data] expected {wanted} but {name} has {', '.join(data)}. "
                f"Name one at the end: @{next(iter(data), 'SPLIT')}."
            )
        data = data[split]
    features = data.features or {}
    return _named_rows(lambda: data, name, {column: _class_names(feature) for column, feature in features.items()})


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """The names of a ``ClassLabel``, or of a list of them; of an object, or of what stands for it in a file."""

    def get(each: Any, key: str) -> Any:
        return each.get(key) if isinstance(each, Mapping) else getattr(each, key, None)

    if isinstance(feature, list) and len(feature) == 1:  # an older spelling of a list
        feature = feature[0]
    inner = get(feature, "feature")
    names = get(feature if inner is None else inner, "names")
    return tuple(names) if names else None


def _named_rows(
    items: Callable[[], Iterable[Mapping[str, Any]]], name: str, classes: Mapping[str, tuple[str, ...] | None]
) -> Scan:
    """Rows with the names of classes in place of their ids."""
    named = {column: names for column, names in classes.items() if names}

    def read() -> Iterator[Row]:
        for number, item in enumerate(items(), 1):
            values, problem = dict(item), None
            for column, names in named.items():
                try:
                    values[column] = _names_of(values.get(column), names)
                except IndexError:
                    problem = (
                        f"expected class ids from 0 to {len(names) - 1} in {column!r} but got {shown(item[column])}"
                    )
            yield Row(number, values, problem)

    return Scan(read, name, "row", named)


def _names_of(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_names_of(item, names) for item in value]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if not 0 <= value < len(names):  # datasets writes -1 where there is no label
        raise IndexError(value)
    return names[value]
