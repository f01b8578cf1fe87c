"""Long texts as overlapping windows: what each window is to learn, and one result from the results of all windows.

``Tokenizer.encode_windows`` cuts the texts. Dimensions: K windows of a text, L tokens of a window, T tokens of the
whole text without special ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from tokenizers import Encoding

from heads.decoding import best_spans

QUESTION, CONTEXT = 0, 1  # the sequences of a pair; a text alone is sequence 0
NO_ANSWER = 0  # the token that says "not here": the first, [CLS] (Devlin et al. 2019, section 4.3)


def text_mask(window: Encoding, sequence: int = 0) -> np.ndarray:
    """Which tokens are of the text that was cut, bool ``(L,)``: not special ones, not the question.

    Args:
        window: its tokens.
        sequence: 0, or ``CONTEXT`` for the second of a pair.
    """
    return np.array([number == sequence for number in window.sequence_ids], dtype=bool)


def window_starts(windows: Sequence[Encoding], stride: int, sequence: int = 0) -> list[int]:
    """The place in the whole text, in tokens, at which each window begins.

    Args:
        windows: all windows of a text, in order.
        stride: tokens that neighbours share, as they were cut.
        sequence: as in :func:`text_mask`.
    """
    step = int(text_mask(windows[0], sequence).sum()) - stride
    return [number * step for number in range(len(windows))]


def most_context(
    windows: Sequence[Encoding], stride: int, sequence: int = 0, words: np.ndarray | None = None
) -> np.ndarray:
    """The window that sees most around each token of the whole text, int32 ``(T,)``.

    A token's context in a window is the smaller of the numbers of tokens before and after it there; where the text
    itself begins or ends nothing is missing. Of equals the first wins.

    Args:
        windows, stride, sequence: as in :func:`window_starts`.
        words: the word of each token ``(T,)``, -1 for none: a word comes whole from one window, if any holds it whole.
    """
    starts = window_starts(windows, stride, sequence)
    sizes = [int(text_mask(window, sequence).sum()) for window in windows]
    total = starts[-1] + sizes[-1]
    context = np.full((len(windows), total), -1, dtype=np.int64)  # -1: the token is not in the window
    for row, start, size in zip(context, starts, sizes, strict=True):
        places = np.arange(size)
        before = places if start else np.full(size, total)
        after = places[::-1] if start + size < total else np.full(size, total)
        row[start : start + size] = np.minimum(before, after)
    owner = context.argmax(axis=0).astype(np.int32)
    if words is None:
        return owner
    for word in np.unique(words[words >= 0]):
        tokens = np.flatnonzero(words == word)
        seen = context[:, tokens].min(axis=1)
        if seen.max() >= 0:
            owner[tokens] = seen.argmax()
    return owner


def join_windows(
    windows: Sequence[Encoding],
    values: Sequence[np.ndarray],
    stride: int,
    sequence: int = 0,
    words: np.ndarray | None = None,
) -> np.ndarray:
    """One value for each token of the whole text, ``(T, ...)``, from the window where it has most context.

    Args:
        windows, stride, sequence, words: as in :func:`most_context`.
        values: for each window, those of its tokens ``(L, ...)``, special ones included, without padding.

    Raises:
        ValueError: values of other numbers of tokens than the windows have.
    """
    sizes, given = [len(window) for window in windows], [len(rows) for rows in values]
    if sizes != given:
        raise ValueError(f"[windows] expected values for {sizes} tokens but got {given}. Cut the padding off.")
    owner = most_context(windows, stride, sequence, words)
    rows = [np.asarray(each)[text_mask(window, sequence)] for window, each in zip(windows, values, strict=True)]
    joined = np.zeros((len(owner), *rows[0].shape[1:]), dtype=rows[0].dtype)
    for number, start in enumerate(window_starts(windows, stride, sequence)):
        places = np.flatnonzero(owner == number)
        joined[places] = rows[number][places - start]
    return joined


def whole_offsets(windows: Sequence[Encoding], stride: int, sequence: int = 0) -> np.ndarray:
    """First and last + 1 character of each token of the whole text, int64 ``(T, 2)``."""
    return join_windows(windows, [np.array(window.offsets) for window in windows], stride, sequence)


def answer_targets(window: Encoding, start: int, end: int) -> tuple[int, int]:
    """The first and last token of an answer, both included; twice ``NO_ANSWER`` where it is not wholly in the window.

    Args:
        window: question and context.
        start, end: first and last + 1 character of the answer in the context; equal if there is no answer.
    """
    places = np.flatnonzero(text_mask(window, CONTEXT))
    if start >= end or not len(places):
        return NO_ANSWER, NO_ANSWER
    spans = np.array(window.offsets)[places]
    if spans[0, 0] > start or spans[-1, 1] < end:
        return NO_ANSWER, NO_ANSWER
    inside = np.flatnonzero((spans[:, 1] > start) & (spans[:, 0] < end))
    if not len(inside):
        return NO_ANSWER, NO_ANSWER
    return int(places[inside[0]]), int(places[inside[-1]])


class Answer(NamedTuple):
    """A part of a context that answers a question.

    Attributes:
        text: as it stands in the context; empty for "no answer".
        start, end: first and last + 1 character in the context.
        score: the sum of the two logits.
        probability: that of its start times that of its end, over all tokens of all windows.
    """

    text: str
    start: int
    end: int
    score: float
    probability: float


def best_answers(
    context: str,
    windows: Sequence[Encoding],
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
    max_answer_length: int = 30,
    top_k: int = 1,
    null_threshold: float | None = None,
) -> list[Answer]:
    """The best answers over all windows, best first, each once.

    Args:
        context: the whole text.
        windows: of the question and the context.
        start_logits, end_logits: for each window, those of its tokens ``(L,)``, without padding.
        max_answer_length: largest number of tokens in an answer.
        top_k: answers at most.
        null_threshold: "no answer" may win: if its score, the smallest over the windows of the logits at
            ``NO_ANSWER``, is above the best answer's by more than this; it then comes first. None: never.

    Returns:
        Fewer than ``top_k`` if there are fewer places; none for a context without tokens, unless "no answer" may win.

    Raises:
        ValueError: logits of other numbers of tokens than the windows have.
    """
    sizes = [len(window) for window in windows]
    for logits in (start_logits, end_logits):
        if sizes != [len(row) for row in logits]:
            raise ValueError(f"[windows] expected logits for {sizes} tokens but got {[len(row) for row in logits]}.")
    usable = [text_mask(window, CONTEXT) for window in windows]
    if null_threshold is not None:
        for row in usable:
            row[NO_ANSWER] = True  # counts in the probabilities
    norm = _log_norm(start_logits, usable) + _log_norm(end_logits, usable)
    found: dict[tuple[int, int], float] = {}
    for window, starts, ends in zip(windows, start_logits, end_logits, strict=True):
        allowed = mx.array(text_mask(window, CONTEXT))[None]
        rows = [mx.array(np.asarray(logits, dtype=np.float32))[None] for logits in (starts, ends)]
        for first, last, score in best_spans(*rows, allowed, max_answer_length, top_k)[0]:
            place = (window.offsets[first][0], window.offsets[last][1])
            found[place] = max(score, found.get(place, -np.inf))
    best = sorted(found.items(), key=lambda item: -item[1])[:top_k]
    answers = [Answer(context[a:b], a, b, score, float(np.exp(score - norm))) for (a, b), score in best]
    if null_threshold is not None:
        null = min(
            float(starts[NO_ANSWER] + ends[NO_ANSWER]) for starts, ends in zip(start_logits, end_logits, strict=True)
        )
        nothing = Answer("", 0, 0, null, float(np.exp(null - norm)))
        margin = {nothing: null_threshold}  # what it must be better by; of equals a place in the text stays first
        answers = sorted([*answers, nothing], key=lambda each: margin.get(each, 0.0) - each.score)
    return answers[:top_k]


def _log_norm(logits: Sequence[np.ndarray], usable: Sequence[np.ndarray]) -> float:
    """The logarithm of the sum of exp over the usable tokens of all windows; 0 without any."""
    values = np.concatenate([np.asarray(row, dtype=np.float64)[mask] for row, mask in zip(logits, usable, strict=True)])
    return float(np.logaddexp.reduce(values)) if len(values) else 0.0
