"""Labels of words -> labels of tokens, by where tokens and words begin in the text.

Dimensions: L tokens, W words.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Encoding

from mlx_bert.data.collate import IGNORE_INDEX
from mlx_bert.data.kinds import Example
from mlx_bert.data.sources import Problems
from mlx_bert.data.windows import most_context, text_mask, whole_offsets, window_starts
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


def tag_windows(
    rows: Sequence[Example],
    tokenizer: Tokenizer,
    tags: Sequence[str],
    max_length: int | None = None,
    stride: int = 0,
    every_token: bool = False,
) -> list[Example]:
    """Windows over tagged texts of any length, ready to train on.

    Args:
        rows: ``text`` and maybe ``tags``: one name per run without white space.
        tokenizer: the encoder's.
        tags: all names, in the order of their ids.
        max_length: tokens of a window; None for what the encoder holds.
        stride: tokens that windows share.
        every_token: label each token of a word, those after the first with ``I-`` in place of ``B-`` where there is
            such a tag; False: the first alone.

    Returns:
        For each window ``input_ids``, ``token_type_ids`` and ``labels`` int32 ``(L,)`` (-100 where a token has none),
        ``row`` (the number of its text), ``line`` if known, and ``words``: of each word that this window shows best
        the number and the place of its first token.

    Raises:
        ValueError: rows with more or fewer tags than words, or with an unknown tag: all of them.
    """
    if not rows:
        return []
    ids = {name: number for number, name in enumerate(tags)}
    inside = np.array([ids.get(f"I-{name[2:]}", ids[name]) if name.startswith("B-") else ids[name] for name in tags])
    problems, examples = Problems("the tagged data", "row" if "line" not in rows[0] else "line"), []
    cut = tokenizer.encode_windows([row["text"] for row in rows], None, max_length, stride)
    for number, (row, windows) in enumerate(zip(rows, cut, strict=True)):
        spans = word_spans(row["text"])
        given = row.get("tags")
        unknown = sorted(set(given or ()) - set(ids))
        if given is not None and (len(given) != len(spans) or unknown):
            wrong = f"unknown tag {unknown[0]!r}; known: {', '.join(tags)}" if unknown else (
                f"expected {len(spans)} tags, one per word, but got {len(given)}"
            )  # fmt: skip
            problems.add(row.get("line", number), wrong)
            continue
        targets = None if given is None else np.array([ids[tag] for tag in given])
        owners = _owned_words(windows, stride, spans)
        for window, owned in zip(windows, owners, strict=True):
            words = words_of_tokens(window.offsets, window.special_tokens_mask, spans)
            labels = np.full(len(window), IGNORE_INDEX, dtype=np.int32)
            if targets is not None:
                starts = _is_first(window.offsets, words, spans)
                kept = (words != NO_WORD) if every_token else starts
                labels[kept] = np.where(starts, targets[words], inside[targets[words]])[kept]
            examples.append(
                {
                    "input_ids": np.array(window.ids, dtype=np.int32),
                    "token_type_ids": np.array(window.type_ids, dtype=np.int32),
                    "labels": labels,
                    "row": number,
                    "words": owned,
                    **{name: row[name] for name in ("line", "weight") if name in row},
                }
            )
    problems.raise_if_any()
    return examples


def _is_first(offsets: Sequence[tuple[int, int]], words: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Whether a token is the first of its word in the whole text, bool ``(L,)``: a window may begin within a word."""
    first = first_tokens(words)
    if len(places := np.flatnonzero(words != NO_WORD)):
        start, _ = spans[words[places[0]]]
        first[places[0]] = offsets[places[0]][0] <= start
    return first


def _owned_words(
    windows: Sequence[Encoding], stride: int, spans: Sequence[tuple[int, int]]
) -> list[list[tuple[int, int]]]:
    """For each window, the words that it shows best, as (word, place of its first token)."""
    offsets = whole_offsets(windows, stride)
    words = words_of_tokens(offsets.tolist(), np.zeros(len(offsets), dtype=int), spans)
    owner = most_context(windows, stride, words=words)
    places = [np.flatnonzero(text_mask(window)) for window in windows]
    starts = window_starts(windows, stride)
    owned: list[list[tuple[int, int]]] = [[] for _ in windows]
    for token in np.flatnonzero(first_tokens(words)):
        window = int(owner[token])
        owned[window].append((int(words[token]), int(places[window][token - starts[window]])))
    return owned
