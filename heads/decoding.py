"""Decoding and structured likelihoods: linear-chain CRF, best answer span. Pure functions, batched.

Dimension key: B batch, L tokens, C labels.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np


def crf_log_likelihood(
    emissions: mx.array,
    labels: mx.array,
    mask: mx.array,
    transitions: mx.array,
    start: mx.array,
    end: mx.array,
) -> mx.array:
    """Return the log-likelihood of each row's label path under a linear-chain CRF (Lafferty et al. 2001), `(B,)`.

    The score of a path is the sum of its emissions and transitions; the normaliser is computed with the forward
    algorithm. Positions outside the mask are skipped wherever they stand: the chain runs over the others. A row
    without any position has likelihood 1.

    Args:
        emissions: `(B, L, C)` scores.
        labels: `(B, L)` labels; what stands outside the mask does not matter.
        mask: `(B, L)` boolean, True for the positions of the chain.
        transitions: `(C, C)`, from the row's label to the column's.
        start, end: `(C,)` scores of the first and the last label.
    """
    emissions = emissions.astype(mx.float32)
    labels = mx.where(mask, labels, 0).astype(mx.int32)
    picked = mx.take_along_axis(emissions, mx.expand_dims(labels, -1), axis=2)[..., 0]
    batch, length, _ = emissions.shape
    started = mx.zeros((batch,), dtype=mx.bool_)
    alpha = mx.broadcast_to(start, (batch, start.shape[0]))
    score, previous = mx.zeros((batch,)), mx.zeros((batch,), dtype=mx.int32)
    for t in range(length):
        here, label = mask[:, t], labels[:, t]
        step = mx.where(started, transitions[previous, label], start[label]) + picked[:, t]
        score = score + mx.where(here, step, 0.0)
        arrive = mx.logsumexp(mx.expand_dims(alpha, 2) + transitions, axis=1)
        moved = mx.where(mx.expand_dims(started, 1), arrive, start) + emissions[:, t]
        alpha = mx.where(mx.expand_dims(here, 1), moved, alpha)
        previous = mx.where(here, label, previous)
        started = started | here
    score = score + end[previous]
    return mx.where(started, score - mx.logsumexp(alpha + end, axis=1), 0.0)


def crf_viterbi(emissions: mx.array, mask: mx.array, transitions: mx.array, start: mx.array, end: mx.array) -> mx.array:
    """Return the most likely label path of each row, `(B, L)` int32, 0 outside the mask (Viterbi 1967).

    Arguments as in `crf_log_likelihood`. Everything stays on the device.
    """
    emissions = emissions.astype(mx.float32)
    batch, length, classes = emissions.shape
    started = mx.zeros((batch,), dtype=mx.bool_)
    alpha = mx.broadcast_to(start, (batch, classes))
    stay = mx.broadcast_to(mx.arange(classes, dtype=mx.int32), (batch, classes))
    back = []
    for t in range(length):
        here = mx.expand_dims(mask[:, t], 1)
        scores = mx.expand_dims(alpha, 2) + transitions
        moving = mx.expand_dims(started, 1)
        moved = mx.where(moving, mx.max(scores, axis=1), start) + emissions[:, t]
        # Where the chain does not move the path keeps its label, so that walking back passes over the position.
        back.append(mx.where(here & moving, mx.argmax(scores, axis=1).astype(mx.int32), stay))
        alpha = mx.where(here, moved, alpha)
        started = started | mask[:, t]
    label = mx.argmax(alpha + end, axis=1).astype(mx.int32)
    path = [label]
    for pointers in reversed(back[1:]):
        label = mx.take_along_axis(pointers, mx.expand_dims(label, 1), axis=1)[:, 0]
        path.append(label)
    return mx.where(mask, mx.stack(path[::-1], axis=1), 0)


def best_spans(
    start_logits: mx.array,
    end_logits: mx.array,
    allowed: mx.array | None = None,
    max_answer_length: int = 30,
    top_k: int = 1,
) -> list[list[tuple[int, int, float]]]:
    """Return the best answer spans of each row, `(start, end, score)` with both ends included, best first.

    A span has `start <= end < start + max_answer_length` and both ends allowed; its score is the sum of the two
    logits (Devlin et al. 2019, section 4.2). A row without an allowed position has no span.

    Args:
        start_logits, end_logits: `(B, L)`.
        allowed: `(B, L)` boolean, such as the context tokens; None allows all.
        max_answer_length: Largest number of tokens in a span.
        top_k: Number of spans per row.
    """
    if max_answer_length < 1 or top_k < 1:
        raise ValueError(
            f"[best_spans] expected max_answer_length and top_k of at least 1 but got {max_answer_length} and {top_k}. "
            "Raise them."
        )
    starts, ends = (np.array(x.astype(mx.float32), dtype=np.float64) for x in (start_logits, end_logits))
    usable = np.ones(starts.shape, bool) if allowed is None else np.array(allowed).astype(bool)
    length = starts.shape[1]
    width = min(max_answer_length, length)  # the few ends that a start may have: a band, not all pairs
    places = np.arange(length)[:, None] + np.arange(width)
    inside, places = places < length, np.minimum(places, length - 1)
    answers = []
    for row_start, row_end, row_ok in zip(starts, ends, usable, strict=True):
        valid = inside & row_ok[:, None] & row_ok[places]
        scores = np.where(valid, row_start[:, None] + row_end[places], -np.inf).ravel()
        best = np.argsort(-scores, kind="stable")[:top_k]
        spans = ((*divmod(int(index), width), float(scores[index])) for index in best if valid.flat[index])
        answers.append([(start, start + more, score) for start, more, score in spans])
    return answers
