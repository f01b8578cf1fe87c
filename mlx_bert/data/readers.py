"""Examples of any kind from any source, checked in one pass that reports every bad row with its line.

An example is a dict with the roles of its kind (``text``, ``label``, ...; see ``mlx_bert/data/kinds.py``) and ``line``:
its place in the file, or its number in a list, from 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from mlx_bert.data.kinds import PAIR, TEXT, Example, Field, Kind, class_or_none, columns_of, kind_of, number
from mlx_bert.data.sources import Problems, Row, Source, Table, read_rows, scan_rows
from mlx_bert.data.sources import read_table as read_table

LABEL_KINDS = ("class", "multilabel", "number")
Columns = Mapping[str, str | Sequence[str] | None]


class Examples(list[Example]):
    """Checked examples.

    Attributes:
        classes: for roles whose source names its classes (``ClassLabel``, or a column for each label), the names in
            their order.
    """

    classes: dict[str, tuple[str, ...]]

    def __init__(self, examples: Sequence[Example], classes: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__(examples)
        self.classes = dict(classes)


def read_examples(
    source: Source,
    text_column: str = "text",
    label_column: str | None = "label",
    pair_column: str | None = None,
    label_kind: str = "class",
    label_separator: str = "|",
) -> Examples:
    """Read and check labelled texts.

    Args:
        source: as :func:`mlx_bert.data.sources.read_rows` takes it.
        text_column: column of the text.
        label_column: column of the label, or several joined by commas (numbers, or labels of 0 and 1); None for texts
            without labels.
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
    columns = {"text": text_column, "text_pair": pair_column, "label": label_column}
    return read_kind(source, label_kind, columns, label_separator, label_column is not None)


def read_kind(
    source: Source, kind: str, columns: Columns | None = None, separator: str = "|", labelled: bool = True
) -> Examples:
    """Read and check examples of a kind.

    Args:
        source: as :func:`mlx_bert.data.sources.read_rows` takes it.
        kind: a key of ``KINDS``.
        columns: role -> column, where the data do not have one of the customary names; several (a list, or joined by
            commas) for a role that is spread over columns. With ``text_pair`` texts are pairs; ``weight`` names a
            column of sampling weights.
        separator: what joins several names or texts in one cell.
        labelled: False reads no targets.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown kind, a missing column, no rows, or bad rows (all of them, with their lines).
    """
    return _checked(read_rows(source), *_wanted(kind, columns, separator, labelled))


def stream_kind(
    source: Source,
    kind: str,
    columns: Columns | None = None,
    separator: str = "|",
    labelled: bool = True,
    window: int = 4096,
) -> Iterator[list[Example]]:
    """Read and check examples of a kind from a source of any size, in bounded memory.

    All rows are checked first, so that bad ones show before any work is done, and read again as they are needed.

    Args:
        source, columns, separator, labelled: as in :func:`read_kind`.
        kind: a key of ``KINDS`` whose examples are a row each: all but ``"ranking"``.
        window: examples in memory at a time.

    Yields:
        The next ``window`` examples. A role that some rows lack is None there.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_kind`, when called.
    """
    if kind == "ranking" or window < 1:
        raise ValueError(
            "[data] expected examples of a row each, in windows of at least 1, but got "
            f"{kind!r} and {window}. Read the whole with read_kind."
        )
    scan = scan_rows(source)
    wanted, given = _wanted(kind, columns, separator, labelled)
    arrange = wanted.arrange or (lambda rows, _: rows)
    named = {role: name for role, name in given.items() if isinstance(name, str)}

    def rows() -> Iterator[Row]:
        return (row for one in scan.read() for row in arrange([one], named))

    present = list(dict.fromkeys(column for row in rows() for column in row.values))
    if next(rows(), None) is None:
        raise ValueError(f"[data] {scan.name} has no rows. Give at least one example.")
    roles = _columns(scan.name, present, wanted, given)

    def examples() -> Iterator[Example]:
        problems = Problems(scan.name, scan.unit)
        yield from _examples(rows(), wanted, roles, problems)
        problems.raise_if_any()

    for _ in examples():
        pass
    absent = dict.fromkeys(roles)
    checked = ({**absent, **example} for example in examples())
    return iter(lambda: list(islice(checked, window)), [])


def _wanted(kind: str, columns: Columns | None, separator: str, labelled: bool) -> tuple[Kind, Columns]:
    """What is read of each row, and from which columns."""
    given = {role: column for role, column in (columns or {}).items() if column is not None}
    wanted = kind_of(kind, separator, "text_pair" in given)
    if not labelled:
        targets = [role for role, field in wanted.fields.items() if field.target]
        wanted = replace(wanted, fields={role: wanted.fields[role] for role in wanted.fields if role not in targets})
        given = {role: column for role, column in given.items() if role not in targets}
    if "weight" in given:
        wanted = replace(wanted, fields={**wanted.fields, "weight": Field((), _weight)})
    return wanted, given


def read_tasks(
    source: Source, tasks: Mapping[str, str], text_column: str | None = None, pair_column: str | None = None
) -> Examples:
    """Read texts with a column of classes for each task; a cell may be empty, but not all of a row.

    Args:
        source: as :func:`mlx_bert.data.sources.read_rows` takes it.
        tasks: task -> column.
        text_column, pair_column: as in :func:`read_examples`.

    Returns:
        One dict per row: ``text``, maybe ``text_pair``, ``label`` {task: class name or None}, ``line``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as :func:`read_kind`.
    """
    prefixed = {f"task {task}": Field((column,), class_or_none) for task, column in tasks.items()}

    def gather(example: Example) -> None:
        example["label"] = {task: example.pop(f"task {task}") for task in tasks}
        if not any(example["label"].values()):
            raise ValueError(f"expected a label of at least one task: {', '.join(tasks)}")

    texts = {"text": TEXT, **({"text_pair": PAIR} if pair_column else {})}
    given = {"text": text_column, "text_pair": pair_column}
    examples = _checked(
        read_rows(source), Kind({**texts, **prefixed}, gather), {role: name for role, name in given.items() if name}
    )
    examples.classes = {role.removeprefix("task "): names for role, names in examples.classes.items()}
    return examples


def _weight(value: object, column: str) -> float:
    found = number(value, column)
    if found < 0:
        raise ValueError(f"expected a weight of 0 or more in column {column!r} but got {found}")
    return found


def _checked(table: Table, kind: Kind, given: Columns) -> Examples:
    """The examples of a table, or an error that names every bad row."""
    if not table.rows:
        raise ValueError(f"[data] {table.name} has no rows. Give at least one example.")
    if kind.arrange:
        table = table._replace(rows=kind.arrange(table.rows, {k: v for k, v in given.items() if isinstance(v, str)}))
    wanted = _columns(table.name, table.columns, kind, given)
    problems = Problems(table.name, table.unit)
    examples = list(_examples(table.rows, kind, wanted, problems))
    problems.raise_if_any()
    classes = {role: table.classes[names[0]] for role, names in wanted.items() if names[0] in table.classes}
    spread = {role: tuple(names) for role, names in wanted.items() if len(names) > 1 and role == "label"}
    return Examples(examples, {**classes, **spread})


def _examples(
    rows: Iterable[Row], kind: Kind, wanted: Mapping[str, Sequence[str]], problems: Problems
) -> Iterator[Example]:
    """The examples of good rows; what is wrong with the others goes to ``problems``."""
    length: int | None = None
    for row in rows:
        if row.problem:
            problems.add(row.line, row.problem)
            continue
        example: Example = {"line": row.line}
        try:
            for role, columns in wanted.items():
                missing = [column for column in columns if column not in row.values]
                if missing and not kind.fields[role].required:
                    continue
                if missing and kind.fields[role].parse is not class_or_none:
                    raise ValueError(f"column {missing[0]!r} is missing")
                values = {column: row.values.get(column) for column in columns}
                value = values if len(columns) > 1 else values[columns[0]]
                example[role] = kind.fields[role].parse(value, columns[0])
            if kind.check:
                kind.check(example)
            if kind.same_length in example:
                found = _length(example[kind.same_length])
                length = found if length is None else length
                if found != length:
                    raise ValueError(f"expected {kind.same_length} of {length} items as before but got {found}")
        except ValueError as error:
            problems.add(row.line, str(error))
        else:
            yield example


def _columns(name: str, present: Sequence[str], kind: Kind, given: Columns) -> dict[str, list[str]]:
    """Role -> the columns to read it from; roles that need not be there and are not left out."""
    if unknown := sorted(set(given) - set(kind.fields)):
        raise ValueError(f"[data] expected columns of {', '.join(kind.fields)} but got one of {', '.join(unknown)}.")
    wanted = {}
    for role, field in kind.fields.items():
        columns = columns_of(field, given.get(role), present)
        if not present and not columns:  # nothing could be parsed: the problems say more than a missing column would
            columns = list(field.columns[:1])
        missing = [column for column in columns if present and column not in present]
        if missing or (field.required and not columns):
            names = missing or field.columns
            raise ValueError(
                f"[data] {name} has no column {' or '.join(map(repr, names))}. It has "
                f"{', '.join(map(repr, present))}. Name the column of the {role}."
            )
        if columns:
            wanted[role] = columns
    return wanted


def _length(value: object) -> int:
    return len(value) if isinstance(value, list) else 1
