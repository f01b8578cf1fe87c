"""Examples -> batches: tokenise once, pad each batch to one of few lengths, stack the labels.

Dimension key: B batch, N items of a group (choices), L tokens, D hidden size, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_bert.data.kinds import Example
from mlx_bert.tokenizer import Tokenizer

IGNORE_INDEX = -100
TEXT_KEYS = ("input_ids", "attention_mask", "token_type_ids")  # what an encoder reads
Arrays = dict[str, Any]  # mx.array, or a dict of them for structured labels


def bucket_length(length: int) -> int:
    """The padded length of a row: the next multiple of 16 up to 64 tokens, of 32 up to 256, of 128 above.

    Few lengths mean few shapes to compile, which MLX keeps for ever.
    """
    step = 16 if length <= 64 else 32 if length <= 256 else 128
    return -(-length // step) * step


def tokenize_examples(
    examples: Sequence[Example], tokenizer: Tokenizer, max_length: int | None = None, batch_size: int = 1000
) -> list[Example]:
    """Add ``input_ids`` and ``token_type_ids`` (int32, unpadded) to examples with ``text`` and maybe ``text_pair``.

    Examples that already have ``input_ids`` stay as they are. With ``choices`` (a list of texts) an example becomes a
    group: the text paired with each.

    Args:
        examples: all with ``text_pair`` or none; all with ``choices`` or none.
        tokenizer: the encoder's.
        max_length: truncate to this many tokens; None for the tokenizer's own bound.
        batch_size: texts that the tokenizer takes at once.

    Raises:
        ValueError: an example without text and ids.
    """
    if missing := [n for n, example in enumerate(examples) if "input_ids" not in example and "text" not in example]:
        raise ValueError(
            f"[data] expected 'text' or 'input_ids' in every example but example {missing[0]} has "
            f"{sorted(examples[missing[0]])}. Name the text column."
        )
    result = list(examples)
    raw = [number for number, example in enumerate(examples) if "input_ids" not in example]
    for start in range(0, len(raw), batch_size):
        numbers = raw[start : start + batch_size]
        if any("choices" in examples[number] for number in numbers):
            for number, group in zip(numbers, _choice_groups(examples, numbers, tokenizer, max_length), strict=True):
                result[number] = {**examples[number], **group}
            continue
        texts = [examples[number]["text"] for number in numbers]
        pairs = [examples[number].get("text_pair") for number in numbers]
        if 0 < pairs.count(None) < len(pairs):
            raise ValueError("[data] expected a text_pair in every example or in none. Complete the pairs.")
        encodings = tokenizer.encode(texts, None if None in pairs else pairs, max_length)
        for number, encoding in zip(numbers, encodings, strict=True):
            result[number] = {
                **examples[number],
                "input_ids": np.array(encoding.ids, dtype=np.int32),
                "token_type_ids": np.array(encoding.type_ids, dtype=np.int32),
            }
    return result


def _choice_groups(
    examples: Sequence[Example], numbers: Sequence[int], tokenizer: Tokenizer, max_length: int | None
) -> list[Example]:
    """``input_ids`` and ``token_type_ids``, a row per choice, of the examples with these numbers."""
    if lacking := [number for number in numbers if not examples[number].get("choices")]:
        raise ValueError(f"[data] expected choices in every example or in none but example {lacking[0]} has none.")
    texts = [examples[number]["text"] for number in numbers for _ in examples[number]["choices"]]
    choices = [choice for number in numbers for choice in examples[number]["choices"]]
    encodings = iter(tokenizer.encode(texts, choices, max_length))
    groups = []
    for number in numbers:
        own = [next(encodings) for _ in examples[number]["choices"]]
        groups.append(
            {
                "input_ids": [np.array(encoding.ids, dtype=np.int32) for encoding in own],
                "token_type_ids": [np.array(encoding.type_ids, dtype=np.int32) for encoding in own],
            }
        )
    return groups


def token_count(example: Example) -> int:
    """Tokens of an example; of its longest item for a group."""
    ids = example["input_ids"]
    return max(len(row) for row in ids) if _is_group(ids) else len(ids)


def texts_of(example: Example, keys: Sequence[str] = TEXT_KEYS) -> list[Example]:
    """The texts of an example, a dict of those ``keys`` that it has for each: one, or the items of a group."""
    found = [key for key in keys if key in example]
    if not _is_group(example["input_ids"]):
        return [{key: example[key] for key in found}]
    return [dict(zip(found, item, strict=True)) for item in zip(*(example[key] for key in found), strict=True)]


def with_states(example: Example, states: Sequence[np.ndarray]) -> Example:
    """An example with the encoder's outputs ``(L, D)`` for each of its texts, as the collators here take them."""
    return {**example, "hidden_states": list(states) if _is_group(example["input_ids"]) else states[0]}


class Collator:
    """Pads and stacks examples of ids and labels.

    Args:
        pad_id: the tokenizer's padding id.
        padding_side: ``"right"`` or ``"left"``.
        token_labels: labels are one per token and are padded with -100; for labels in a dict, the names of those that
            are.
        max_length: bound of the padded length (the encoder's); None for none.
        exact: pad to the longest row and not to one of few lengths; for code that is not compiled for each shape.
    """

    def __init__(
        self,
        pad_id: int,
        padding_side: str = "right",
        token_labels: bool | Sequence[str] = False,
        max_length: int | None = None,
        exact: bool = False,
    ) -> None:
        self.pad_id = pad_id
        self.padding_side = padding_side
        self.token_labels = token_labels
        self.max_length = max_length
        self.exact = exact

    def __call__(self, examples: Sequence[Example]) -> Arrays:
        """Batch examples.

        Args:
            examples: dicts with ``input_ids`` (L tokens, or N lists of them), optionally ``attention_mask``,
                ``token_type_ids``, ``labels`` (a number, an array, or a dict of them) and ``hidden_states`` (L, D), or
                N of them.

        Returns:
            ``input_ids`` int32 ``(B, L)`` or ``(B, N, L)``; ``attention_mask`` bool of the same shape unless nothing
            is padded; ``token_type_ids`` unless all are zero; ``labels`` int32 or float32; ``hidden_states``
            ``(B, L, D)`` or ``(B, N, L, D)`` in place of the ids when the examples have them.
        """
        batch, length = self._inputs(examples)
        if "labels" in examples[0]:
            batch["labels"] = self._labels([example["labels"] for example in examples], length, self.token_labels)
        return batch

    def texts(self, example: Example) -> list[Example]:
        """What the encoder reads of an example, text by text; it reads the same in every epoch."""
        return texts_of(example)

    def pad_texts(self, texts: Sequence[Example]) -> Arrays:
        """Batch single texts, without labels."""
        return self._inputs(texts)[0]

    def _inputs(self, examples: Sequence[Example]) -> tuple[Arrays, int]:
        """The batch but for labels, and L."""
        longest = max(token_count(example) for example in examples)
        length = longest if self.exact else bucket_length(longest)
        if self.max_length is not None:
            length = max(longest, min(length, self.max_length))
        mask = self._pad([_ones(example) for example in examples], length, 0, np.bool_)
        batch: Arrays = {}
        if "hidden_states" in examples[0]:
            batch["hidden_states"] = mx.array(self._pad([e["hidden_states"] for e in examples], length, 0, np.float32))
        else:
            batch["input_ids"] = mx.array(self._pad([e["input_ids"] for e in examples], length, self.pad_id, np.int32))
            if "token_type_ids" in examples[0]:
                types = self._pad([example["token_type_ids"] for example in examples], length, 0, np.int32)
                if types.any():
                    batch["token_type_ids"] = mx.array(types)
        if not mask.all():
            batch["attention_mask"] = mx.array(mask)
        return batch, length

    def _labels(self, labels: Sequence[Any], length: int, of_tokens: bool | Sequence[str]) -> Any:
        if isinstance(labels[0], Mapping) and of_tokens:
            return {
                name: self._labels([label[name] for label in labels], length, of_tokens is True or name in of_tokens)
                for name in labels[0]
            }
        if not of_tokens:
            return stack_labels(labels)
        dtype = np.float32 if np.asarray(labels[0]).dtype.kind == "f" else np.int32
        return mx.array(self._pad(labels, length, IGNORE_INDEX, dtype))

    def _pad(self, rows: Sequence[Any], length: int, fill: float, dtype: Any) -> np.ndarray:
        """``(B, L, ...)`` from rows ``(l, ...)``; ``(B, N, L)`` from groups of rows."""
        if _is_group(rows[0]):
            if len({len(group) for group in rows}) > 1:
                raise ValueError(
                    "[data] expected the same number of items in every group of a batch. Split the batches."
                )
            return np.stack([self._pad(group, length, fill, dtype) for group in rows])
        shape = (len(rows), length, *np.shape(rows[0])[1:])
        padded = np.full(shape, fill, dtype=dtype)
        for place, row in zip(padded, rows, strict=True):
            if len(row):
                place[: len(row)] = row
                if self.padding_side == "left":
                    place[:] = np.roll(place, length - len(row), axis=0)
        return padded


class PartsCollator(Collator):
    """Pads each part of a group by itself: anchors, positives and negatives each to their own longest."""

    def texts(self, example: Example) -> list[Example]:
        return texts_of(example, ("input_ids",))

    def __call__(self, examples: Sequence[Example]) -> Arrays:
        """Batch examples whose ``input_ids`` are lists of N texts.

        Returns:
            ``parts``, N batches as :class:`Collator` makes them, and ``labels`` if the examples have them.
        """
        counts = {len(example["input_ids"]) if _is_group(example["input_ids"]) else 1 for example in examples}
        if len(counts) > 1 or counts == {1}:
            raise ValueError(
                f"[data] expected examples of the same number of texts, at least 2, but got {sorted(counts)}. "
                "Give input_ids as a list of id lists."
            )
        parts = [self.part(examples, number) for number in range(counts.pop())]
        labelled = "labels" in examples[0]
        return {"parts": parts, **({"labels": stack_labels([e["labels"] for e in examples])} if labelled else {})}

    def part(self, examples: Sequence[Example], number: int) -> Arrays:
        """The batch of one text of each example."""
        keys = [key for key in ("input_ids", "hidden_states") if key in examples[0]]
        return self.pad_texts([{key: example[key][number] for key in keys} for example in examples])


class ListCollator(Collator):
    """Pads lists of texts, such as the documents of queries, to the same number of items."""

    def __call__(self, examples: Sequence[Example]) -> Arrays:
        """Batch examples whose ``input_ids`` are lists of any number of texts, and ``labels`` a number for each.

        Returns:
            As :class:`Collator` for groups ``(B, N, L)``. ``attention_mask`` is always there, and all False for the
            items that a list does not have; their label is 0.
        """
        count = max(len(example["input_ids"]) for example in examples)
        filled = []
        for example in examples:
            more = count - len(example["input_ids"])
            filled.append({
                key: [*example[key], *[np.asarray(example[key][0])[:0]] * more]
                for key in (*TEXT_KEYS, "hidden_states")
                if key in example
            })  # fmt: skip
            if "labels" in example:
                filled[-1]["labels"] = np.pad(np.asarray(example["labels"], dtype=np.float32), (0, more))
        batch = super().__call__(filled)
        items = batch["hidden_states" if "hidden_states" in batch else "input_ids"]
        batch.setdefault("attention_mask", mx.ones(items.shape[:3], mx.bool_))
        return batch


def stack_labels(labels: Sequence[Any]) -> Any:
    """``(B, ...)`` from one label per example: int32 for whole numbers, float32 for others, a dict for dicts."""
    if isinstance(labels[0], Mapping):
        return {key: stack_labels([label[key] for label in labels]) for key in labels[0]}
    stacked = np.asarray(labels)
    if stacked.dtype.kind not in "iufb":
        raise ValueError(f"[data] expected numbers as labels but got {labels[0]!r}. Encode the labels with a LabelMap.")
    return mx.array(stacked.astype(np.float32 if stacked.dtype.kind == "f" else np.int32))


def _is_group(ids: Any) -> bool:
    """Whether ids are lists of ids: a group of items such as choices."""
    return isinstance(ids, (list, tuple)) and len(ids) > 0 and np.ndim(ids[0]) > 0


def _ones(example: Example) -> Any:
    """The attention mask of an example before padding."""
    if "attention_mask" in example:
        return example["attention_mask"]
    ids = example["input_ids"]
    return [np.ones(len(row)) for row in ids] if _is_group(ids) else np.ones(len(ids))
