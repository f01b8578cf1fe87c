"""Labels of words -> labels of tokens, by where tokens and words begin in the text.

Dimensions: L tokens, W words.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlx_bert.data.collate import IGNORE_INDEX
from mlx_bert.data.readers import Example
from mlx_bert.tokenizer import Tokenizer

NO_WORD = -1
_WORD = re.compile(r"\S+")


def word_spans(text: str) -> list[tuple[int, int]]:
    """First and last + 1 character of each run without white space."""
    return [match.span() for match in _WORD.finditer(text)]


def words_of_tokens(
    offsets: Sequence[tuple[int, int]], special: Sequence[int], spans: Sequence[tuple[int, int]]
) -> np.ndarray:
    """The word in which each token begins, int32 ``(L,)``; -1 for special tokens and for white space.

    Args:
        offsets: first and last + 1 character of each token.
        special: 1 for special tokens.
        spans: those of the words, ascending.
    """
    starts = [start for start, _ in spans]
    words = np.full(len(offsets), NO_WORD, dtype=np.int32)
    for place, ((start, end), is_special) in enumerate(zip(offsets, special, strict=True)):
        word = bisect_right(starts, start) - 1
        if not is_special and end > start and word >= 0 and start < spans[word][1]:
            words[place] = word
    return words


def align_labels(words: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """The label of each token, int32 ``(L,)``: that of its word, -100 for tokens of no word.

    Args:
        words: the word of each token, as :func:`words_of_tokens` gives it.
        labels: one per word.
    """
    table = np.array([*labels, IGNORE_INDEX], dtype=np.int32)  # -1, no word, is the last place
    return table[words]


def first_tokens(words: np.ndarray) -> np.ndarray:
    """Whether a token is the first of its word, bool ``(L,)``."""
    before = np.concatenate([[NO_WORD], words[:-1]])
    return (words != NO_WORD) & (words != before)


def tag_examples(
    rows: Sequence[Example], tokenizer: Tokenizer, tags: Sequence[str], max_length: int | None = None
) -> list[dict[str, Any]]:
    """Tokenise texts with a tag per word.

    Args:
        rows: ``text`` and ``tags``: one name per run without white space.
        tokenizer: the encoder's.
        tags: all names, in the order of their ids.
        max_length: truncate to this many tokens.

    Returns:
        The rows with ``input_ids`` int32, ``tag_ids`` int32 (-100 where a token has none) and ``starts`` bool (the
        first token of each word), all ``(L,)``.

    Raises:
        ValueError: a row with more or fewer tags than words, or with an unknown tag.
    """
    ids = {name: number for number, name in enumerate(tags)}
    tagged = []
    encodings = tokenizer.encode([row["text"] for row in rows], max_length=max_length)
    for number, (row, encoding) in enumerate(zip(rows, encodings, strict=True)):
        spans = word_spans(row["text"])
        if len(row["tags"]) != len(spans):
            raise ValueError(
                f"[alignment] expected {len(spans)} tags, one per word, in row {number} but got {len(row['tags'])}."
            )
        if unknown := [tag for tag in row["tags"] if tag not in ids]:
            raise ValueError(f"[alignment] unknown tag {unknown[0]!r} in row {number}; known: {', '.join(tags)}.")
        words = words_of_tokens(encoding.offsets, encoding.special_tokens_mask, spans)
        tagged.append(
            {
                **row,
                "input_ids": np.array(encoding.ids, dtype=np.int32),
                "tag_ids": align_labels(words, [ids[tag] for tag in row["tags"]]),
                "starts": first_tokens(words),
            }
        )
    return tagged
