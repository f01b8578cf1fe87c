"""Rows of texts and labels -> examples and batches of a sentence encoder.

Dimension key: B batch, L tokens, N texts of an example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlx_bert.data.collate import Arrays, PartsCollator, stack_labels
from mlx_bert.data.readers import Example
from mlx_bert.data.sources import records
from mlx_bert.tokenizer import Tokenizer

LABELS = ("label", "labels", "score", "scores")
Row = Mapping[str, Any] | Sequence[str]
Prompts = str | Mapping[str, str]


def texts_of(row: Row) -> dict[str, str]:
    """The texts of a row by column, in order: all values that are not labels. A list is several columns.

    ``{"anchor": "a", "positive": "b", "negative": ["c", "d"]}`` has the columns anchor, positive, negative, negative_2;
    the texts of a tuple or list of strings are called ``text_1``, ``text_2``, ...
    """
    if not isinstance(row, Mapping):
        row = {f"text_{number}": text for number, text in enumerate(row, start=1)} if not isinstance(row, str) else {}
    found: dict[str, str] = {}
    for column, value in row.items():
        if column in LABELS or column == "line":
            continue
        values = list(value) if isinstance(value, list | tuple) else [value]
        for number, text in enumerate(values, start=1):
            found[column if number == 1 else f"{column}_{number}"] = text
    return found


def sentence_examples(
    rows: Sequence[Row], tokenizer: Tokenizer, max_length: int, prompts: Prompts = "", name: str = "train_examples"
) -> tuple[list[Example], list[str]]:
    """Tokenise rows.

    Args:
        rows: dicts whose column ``label``, ``labels``, ``score`` or ``scores`` is the label and whose other columns
            are the texts, in order; or tuples of texts.
        tokenizer: the encoder's.
        max_length: truncate to this many tokens, prompt included.
        prompts: goes before each text; or one for each column.
        name: what a message calls the rows.

    Returns:
        Examples with ``input_ids``, N rows of int32 each, and ``labels`` if the rows have them; the columns.

    Raises:
        ValueError: no rows, rows of different columns, something that is not text, or a prompt for an unknown column.
    """
    rows = records(rows)
    if not rows:
        raise ValueError(f"[sentence data] expected at least one example in {name} but got none. Check the data.")
    texts = [texts_of(row) for row in rows]
    columns = list(texts[0])
    labelled = _label(rows[0]) is not None
    for number, (row, own) in enumerate(zip(rows, texts, strict=True)):
        if not own or list(own) != columns or (_label(row) is not None) != labelled:
            raise ValueError(
                f"[sentence data] expected the columns {', '.join(columns) or 'of texts'}{' and a label' * labelled} "
                f"in every row of {name} but row {number} has {', '.join(own) or 'no text'}. Complete the rows."
            )
        if wrong := [column for column, text in own.items() if not isinstance(text, str)]:
            raise ValueError(
                f"[sentence data] expected text in {', '.join(wrong)} of row {number} of {name} but got "
                f"{own[wrong[0]]!r}. Remove columns that are neither texts nor labels."
            )
    before = prompts_of(columns, prompts)
    flat = [prompt + text for own in texts for prompt, text in zip(before, own.values(), strict=True)]
    encodings = (
        encoding
        for start in range(0, len(flat), 1000)
        for encoding in tokenizer.encode(flat[start : start + 1000], max_length=max_length)
    )
    examples: list[Example] = []
    for row in rows:
        example: Example = {"input_ids": [np.array(next(encodings).ids, dtype=np.int32) for _ in columns]}
        if labelled:
            example["labels"] = _label(row)
        examples.append(example)
    return examples, columns


def prompts_of(columns: Sequence[str], prompts: Prompts) -> list[str]:
    """The prompt of each column.

    Raises:
        ValueError: one for a column that is not there.
    """
    if isinstance(prompts, str):
        return [prompts] * len(columns)
    if unknown := sorted(set(prompts) - set(columns)):
        raise ValueError(
            f"[sentence data] expected prompts for the columns {', '.join(columns)} but got one for "
            f"{', '.join(unknown)}. Correct its name."
        )
    return [prompts.get(column, "") for column in columns]


def keys_of(examples: Sequence[Example]) -> list[list[bytes]]:
    """What tells the texts of each example apart: their token ids."""
    return [[row.tobytes() for row in example["input_ids"]] for example in examples]


def _label(row: Row) -> Any:
    if not isinstance(row, Mapping):
        return None
    return next((row[name] for name in LABELS if row.get(name) is not None), None)


class SentenceCollator(PartsCollator):
    """Pads each text of the examples by itself; examples may also be of one text."""

    def __call__(self, examples: Sequence[Example]) -> Arrays:
        """``parts``, N batches of ``input_ids (B, L)`` and maybe ``attention_mask``, and ``labels`` if there are."""
        if len(examples[0]["input_ids"]) > 1:
            return super().__call__(examples)
        batch: Arrays = {"parts": [self.part(examples, 0)]}
        if "labels" in examples[0]:
            batch["labels"] = stack_labels([example["labels"] for example in examples])
        return batch
