"""Writing predictions, one row after another: aligned columns for people, JSON Lines, or CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, TextIO

FORMATS = ("text", "jsonl", "csv")
Row = dict[str, Any]


def write_rows(windows: Iterable[list[Row]], file: TextIO, output_format: str) -> int:
    """Write rows as they come.

    Args:
        windows: some rows at a time; CSV has the columns of the first window.
        file: where to.
        output_format: one of ``FORMATS``; CSV holds nested values as JSON.

    Returns:
        The number of rows.
    """
    windows = iter(windows)
    first = next(windows, [])
    count = 0
    lines = _csv(first) if output_format == "csv" else _json if output_format == "jsonl" else _text
    for window in chain([first], windows):
        file.writelines(lines(window))
        count += len(window)
    return count


class _Line:
    """Takes what a ``csv.writer`` writes."""

    def write(self, line: str) -> str:
        return line


def _csv(first: list[Row]) -> Any:
    columns = list(dict.fromkeys(column for row in first for column in row))
    writer = csv.DictWriter(_Line(), columns, lineterminator="\n")
    header = [writer.writeheader()]

    def lines(rows: list[Row]) -> Iterator[str]:
        while header:
            yield header.pop()
        for row in rows:
            cells = {k: json.dumps(v, ensure_ascii=False) if isinstance(v, (list, dict)) else v for k, v in row.items()}
            yield writer.writerow(cells)

    return lines


def _json(rows: list[Row]) -> Iterator[str]:
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _text(rows: list[Row]) -> Iterator[str]:
    return (line_of(row) + "\n" for row in rows)


def _entities(entities: list[Row]) -> str:
    return ", ".join(f"{each['entity_group']} {each['score']:.4f} {each['word']}" for each in entities) or "-"


def line_of(row: Row) -> str:
    """A row for people."""
    text = row.get("text", row.get("question", ""))
    text = f"{text} | {row['text_pair']}" if "text_pair" in row else text
    if "entities" in row:
        return f"{_entities(row['entities'])}  {text}"
    if "tags" in row:
        tagged = " ".join(f"{word}/{tag}" for word, tag in zip(row["words"], row["tags"], strict=True))
        return f"{row['intent']} {row['intent_confidence']:.4f}  {tagged}"
    if "answer" in row:
        return f"{row['confidence']:.4f}  {row['answer'] or '(no answer)'}  {text}"
    if "choice" in row:
        return f"{row['confidence']:.4f}  {row['choice']}  {text}"
    tasks = {name.removesuffix("_confidence"): name for name in row if name.endswith("_confidence")}
    parts = [f"{task} {row[task]} {row[name]:.4f}" for task, name in tasks.items()]
    tagged = (name for name in row if name.endswith("_entities"))
    parts += [f"{name.removesuffix('_entities')} {_entities(row[name])}" for name in tagged]
    if parts:
        return ", ".join(parts) + f"  {text}"
    if "documents" in row:
        scored = zip(row["document_scores"], row["documents"], strict=True)
        return "\n".join([row["query"], *(f"{score:10.4f}  {document}" for score, document in scored)])
    if "embedding" in row:
        return " ".join(f"{number:.6f}" for number in row["embedding"]) + f"  {text}"
    if "score" in row:
        return f"{row['score']:10.4f}  {text}"
    if "candidates" in row:
        places = [", ".join(f"{word} {score:.4f}" for word, score in place.items()) for place in row["candidates"]]
        return " | ".join(places) + f"  {text}"
    if "value" in row:
        values = row["value"] if isinstance(row["value"], list) else [row["value"]]
        return "  ".join(f"{value:10.4f}" for value in values) + f"  {text}"
    if "scores" in row:
        return "  ".join(f"{name} {score:.4f}" for name, score in row["scores"].items()) + f"  {text}"
    if "labels" in row:
        named = zip(row["labels"], row["confidence"], strict=True)
        return (", ".join(f"{name} {score:.4f}" for name, score in named) or "-") + f"  {text}"
    return f"{row['label']:<16}{row['confidence']:.4f}  {text}"
