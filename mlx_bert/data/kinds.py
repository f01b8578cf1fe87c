"""The kinds of examples and what each must be: one small table, from role to column names and check.

A check takes what stands in a row and gives what an example holds, or raises ValueError saying what is wrong.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mlx_bert.data.sources import Row, shown

Example = dict[str, Any]


@dataclass(frozen=True)
class Field:
    """One role of an example.

    Attributes:
        columns: names that it may have in the data; the first that is there is taken.
        parse: (value, column) -> value. Of a role that is spread over several columns it gets {column: value}.
        required: whether every row must have it.
        target: what is to be learnt; left out of unlabelled data.
    """

    columns: tuple[str, ...]
    parse: Callable[[Any, str], Any]
    required: bool = True
    target: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of examples.

    Attributes:
        fields: by role.
        check: what must hold between the roles of an example.
        arrange: puts the rows of other customary layouts into this one.
        same_length: a role that must be as long in every row.
    """

    fields: Mapping[str, Field]
    check: Callable[[Example], None] | None = None
    arrange: Callable[[list[Row], Mapping[str, str]], list[Row]] | None = None
    same_length: str | None = None


# --- single values ----------------------------------------------------------------------------------------------------


def text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text in column {column!r} but got {shown(value)}")
    if not value.strip():
        raise ValueError(f"empty text in column {column!r}")
    return value


def class_name(value: Any, column: str) -> str:
    if isinstance(value, float) and value.is_integer():  # what other tools write for a column of whole numbers
        value = int(value)
    if not isinstance(value, (str, int)):
        raise ValueError(f"expected a class name in column {column!r} but got {shown(value)}")
    name = str(value).strip()
    if not name:
        raise ValueError(f"empty label in column {column!r}")
    return name


def class_or_none(value: Any, column: str) -> str | None:
    """A class name, or None where a task has no label."""
    return None if is_empty(value) else class_name(value, column)


def is_empty(value: Any) -> bool:
    return (
        value is None
        or (isinstance(value, str) and not value.strip())
        or (isinstance(value, float) and math.isnan(value))
    )


def class_names(value: Any, column: str, separator: str = "|") -> list[str]:
    """The labels that hold: a list, a cell of joined names, or a column of 0 and 1 for each."""
    if isinstance(value, Mapping):
        return [name for name, flag in value.items() if _flag(flag, name)]
    names = value
    if isinstance(value, str):
        names = _json_list(value) if value.lstrip().startswith("[") else value.split(separator)
    if not isinstance(names, (list, tuple)):
        raise ValueError(f"expected a list of labels in column {column!r} but got {shown(value)}")
    return [class_name(name, column) for name in names if not (isinstance(name, str) and not name.strip())]


def _flag(value: Any, column: str) -> bool:
    found = number(value, column) if not isinstance(value, bool) else float(value)
    if found not in (0.0, 1.0):
        raise ValueError(f"expected 0 or 1 in column {column!r} but got {shown(value)}")
    return bool(found)


def number(value: Any, column: str) -> float:
    try:
        found = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"expected a finite number in column {column!r} but got {shown(value)}")
    return found


def numbers(value: Any, column: str) -> float | list[float]:
    """A number, or a list of them: of a list, a JSON cell, or several columns."""
    if isinstance(value, Mapping):
        return [number(each, name) for name, each in value.items()]
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _json_list(value)
    if isinstance(value, (list, tuple)):
        return [number(item, column) for item in value]
    return number(value, column)


def words(value: Any, column: str) -> list[str]:
    """Words without white space in them: a list, or a cell of words with blanks between."""
    if isinstance(value, str):
        value = _json_list(value) if value.lstrip().startswith('["') else value.split()
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"expected a list of words in column {column!r} but got {shown(value)}")
    for word in value:
        if not isinstance(word, (str, int)) or isinstance(word, bool) or len(str(word).split()) != 1:
            raise ValueError(f"expected words without white space in column {column!r} but got {shown(word)}")
    return [str(word).strip() for word in value]


def texts(value: Any, column: str, separator: str = "|") -> list[str]:
    """Texts: a list, a cell of joined texts, or a column for each."""
    if isinstance(value, Mapping):
        return [text(each, name) for name, each in value.items()]
    if isinstance(value, str):
        value = _json_list(value) if value.lstrip().startswith('["') else value.split(separator)
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"expected a list of texts in column {column!r} but got {shown(value)}")
    return [text(item, column) for item in value]


def one_or_more(value: Any, column: str) -> str | list[str]:
    """A text, or a list of them."""
    return texts(value, column) if isinstance(value, (list, tuple)) else text(value, column)


def number_list(value: Any, column: str) -> list[float]:
    """Numbers, of which there may be one alone."""
    found = numbers(value, column)
    return found if isinstance(found, list) else [found]


def answers(value: Any, column: str) -> dict[str, list]:
    """SQuAD's ``{"text": [...], "answer_start": [...]}``, also from a list of dicts; empty lists for "no answer"."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        value = json.loads(value)
    if value is None:
        value = []
    if isinstance(value, Mapping):
        found, starts = value.get("text"), value.get("answer_start")
        found = [found] if isinstance(found, str) else found
        starts = [starts] if isinstance(starts, int) else starts
    elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        found = [item.get("text") for item in value]
        starts = [item.get("answer_start") for item in value]
    else:
        raise ValueError(f"expected answers with text and answer_start in column {column!r} but got {shown(value)}")
    if not isinstance(found, list) or not isinstance(starts, list) or len(found) != len(starts):
        raise ValueError(f"expected as many answer_start as texts in column {column!r} but got {shown(value)}")
    for part, start in zip(found, starts, strict=True):
        if not isinstance(part, str) or not isinstance(start, int) or isinstance(start, bool):
            raise ValueError(f"expected a text and a place in column {column!r} but got {shown((part, start))}")
    return {"text": list(found), "answer_start": list(starts)}


def _json_list(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        raise ValueError(f"expected a JSON list but got {shown(value)}") from None


# --- between the roles of an example ----------------------------------------------------------------------------------


def _tag_per_word(example: Example) -> None:
    if "tags" in example and len(example["tags"]) != len(example["tokens"]):
        raise ValueError(f"expected {len(example['tokens'])} tags, one per token, but got {len(example['tags'])}")
    example["text"] = " ".join(example["tokens"])


def _answers_in_context(example: Example) -> None:
    context = example["context"]
    given = example.get("answers", {"text": [], "answer_start": []})
    for part, start in zip(given["text"], given["answer_start"], strict=True):
        if not part or start < 0 or context[start : start + len(part)] != part:
            there = shown(context[max(start, 0) : max(start, 0) + len(part)])
            raise ValueError(f"expected the answer {shown(part)} at character {start} of the context but got {there}")


def _choice(example: Example) -> None:
    count = len(example["choices"])
    if count < 2:
        raise ValueError(f"expected at least 2 choices but got {count}")
    if "label" not in example:
        return
    label = example["label"]
    if label.isdecimal() and int(label) < count:
        example["label"] = int(label)
    elif len(label) == 1 and 0 <= ord(label.upper()) - ord("A") < count:
        example["label"] = ord(label.upper()) - ord("A")
    else:
        raise ValueError(f"expected a label from 0 to {count - 1}, or A to {chr(64 + count)}, but got {label!r}")


def _relevance_per_document(example: Example) -> None:
    if "labels" in example and len(example["labels"]) != len(example["documents"]):
        raise ValueError(
            f"expected {len(example['documents'])} relevance labels, one per document, but got {len(example['labels'])}"
        )


# --- other layouts ----------------------------------------------------------------------------------------------------


def _answers_of_columns(rows: list[Row], columns: Mapping[str, str]) -> list[Row]:
    """A column of the answer's text and maybe one of its place -> ``answers``; ``is_impossible`` -> none."""
    arranged = []
    for row in rows:
        values = dict(row.values)
        answer = next((values[name] for name in ("answer", "answer_text") if name in values), None)
        if "answers" not in values and not row.problem and (isinstance(answer, str) or "is_impossible" in values):
            start = values.get("answer_start")
            context = values.get(columns.get("context", "context"))
            if values.get("is_impossible") in (True, 1, "1", "True", "true") or is_empty(answer):
                values["answers"] = []
            elif is_empty(start) and isinstance(context, str) and context.count(answer) == 1:
                values["answers"] = [{"text": answer, "answer_start": context.index(answer)}]
            else:
                place = int(start) if isinstance(start, str) and start.strip().isdecimal() else start
                values["answers"] = [{"text": answer, "answer_start": place}]
        arranged.append(row._replace(values=values))
    return arranged


def _groups_of_rows(rows: list[Row], columns: Mapping[str, str]) -> list[Row]:
    """A document a row, or positives and negatives -> all documents of a query with their relevance."""
    if any("documents" in row.values for row in rows) or "documents" in columns:
        return rows
    query, label = columns.get("query", "query"), columns.get("labels", "label")
    arranged: list[Row] = []
    groups: dict[Any, Row] = {}
    for row in rows:
        values = row.values
        if {"pos", "neg"} & set(values):
            parts = [
                [part] if isinstance(part, str) else list(part or []) for part in (values.get("pos"), values.get("neg"))
            ]
            relevance = [1.0] * len(parts[0]) + [0.0] * len(parts[1])
            arranged.append(row._replace(values={**values, "documents": [*parts[0], *parts[1]], "labels": relevance}))
        elif row.problem or "document" not in values or not isinstance(values.get(query), str):
            arranged.append(row)
        else:
            key = values.get("query_id", values[query])
            if key not in groups:
                start = {"documents": [], **({"labels": []} if label in values else {})}
                groups[key] = row._replace(values={**values, **start})
                arranged.append(groups[key])
            groups[key].values["documents"].append(values["document"])
            if "labels" in groups[key].values and label in values:
                groups[key].values["labels"].append(values[label])
    return arranged


def _as_list(value: Any) -> list:
    return [value] if isinstance(value, str) else list(value or [])


# --- the table --------------------------------------------------------------------------------------------------------

TEXT = Field(("text", "sentence"), text)
PAIR = Field(("text_pair", "sentence2"), text, required=False)
FIRST = Field(("text", "text_a", "sentence1", "sentence_a", "premise", "anchor", "query"), text)
SECOND = Field(("text_pair", "text_b", "sentence2", "sentence_b", "hypothesis", "positive", "document"), text)
LABEL = Field(("label",), class_name, target=True)
TOKENS = Field(("tokens", "words"), words)
TAGS = Field(("tags", "ner_tags"), words, target=True)

KINDS: dict[str, Kind] = {
    "text": Kind({"text": TEXT}),
    "class": Kind({"text": TEXT, "label": LABEL}),
    "multilabel": Kind({"text": TEXT, "label": Field(("label", "labels"), class_names, target=True)}),
    "number": Kind(
        {"text": TEXT, "label": Field(("label", "score", "targets"), numbers, target=True)}, same_length="label"
    ),
    "tagging": Kind({"tokens": TOKENS, "tags": TAGS}, _tag_per_word),
    "joint": Kind(
        {
            "tokens": Field((*TOKENS.columns, *TEXT.columns), words),
            "intent": Field(("intent", "label"), class_name, target=True),
            "tags": TAGS,
        },
        _tag_per_word,
    ),
    "question_answering": Kind(
        {
            "question": Field(("question",), text),
            "context": Field(("context",), text),
            "answers": Field(("answers",), answers, target=True),
            "id": Field(("id",), class_name, required=False),
        },
        _answers_in_context,
        _answers_of_columns,
    ),
    "multiple_choice": Kind(
        {
            "text": Field(("question", "context", "prompt", "text"), text),
            "choices": Field(("choices", "endings"), texts),
            "label": Field(("label", "answer"), class_name, target=True),
        },
        _choice,
        same_length="choices",
    ),
    "ranking": Kind(
        {
            "query": Field(("query",), text),
            "documents": Field(("documents", "docs", "passages"), texts),
            "labels": Field(("labels", "relevance"), number_list, target=True),
        },
        _relevance_per_document,
        _groups_of_rows,
    ),
    "scored_pair": Kind({"text": FIRST, "text_pair": SECOND, "score": Field(("score", "label"), number, target=True)}),
    "labelled_pair": Kind({"text": FIRST, "text_pair": SECOND, "label": LABEL}),
    "positive_pair": Kind(
        {
            "anchor": Field(("anchor", "query", "text", "text_a", "sentence1", "question"), text),
            "positive": Field(("positive", "pos", "document", "text_pair", "text_b", "sentence2", "answer"), text),
        }
    ),
    "triplet": Kind(
        {
            "anchor": Field(("anchor", "query", "text"), text),
            "positive": Field(("positive", "pos"), text),
            "negative": Field(("negative", "neg"), one_or_more),
        }
    ),
    "distillation": Kind(
        {
            "anchor": Field(("anchor", "query", "text"), text),
            "positive": Field(("positive", "pos"), text),
            "negative": Field(("negative", "neg"), one_or_more),
            "scores": Field(("scores", "score", "label"), numbers, target=True),
        },
        same_length="scores",
    ),
    "teacher": Kind(
        {
            "text": replace(FIRST, columns=(*FIRST.columns, "sentence", "english")),
            "text_pair": replace(SECOND, columns=(*SECOND.columns, "non_english"), required=False),
            "labels": Field(("labels", "label", "embedding"), number_list, target=True),
        },
        same_length="labels",
    ),
}


def kind_of(name: str, separator: str = "|", pair: bool = False) -> Kind:
    """A kind of the table, with the options of a source.

    Args:
        name: its key.
        separator: what joins several names or texts in a cell.
        pair: the text has a second one.

    Raises:
        ValueError: no such kind.
    """
    if name not in KINDS:
        raise ValueError(f"[data] expected a kind of examples among {', '.join(KINDS)} but got {name!r}.")
    kind = KINDS[name]
    fields = {
        role: replace(field, parse=partial(field.parse, separator=separator))
        if field.parse in (class_names, texts)
        else field
        for role, field in kind.fields.items()
    }
    if pair and "text" in fields and "text_pair" not in fields:
        fields = {"text": fields.pop("text"), "text_pair": replace(PAIR, required=True), **fields}
    return replace(kind, fields=fields)


def columns_of(field: Field, given: str | Sequence[str] | None, present: Sequence[str]) -> list[str]:
    """The columns that a role is read from: those given, else the first of its names that is there; may be empty."""
    if given is None:
        return [name for name in field.columns if name in present][:1]
    if isinstance(given, str):
        given = [given] if given in present or "," not in given else [name.strip() for name in given.split(",")]
    return list(given)
