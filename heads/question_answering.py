"""Extractive question answering: where an answer starts and ends.

Dimension key: B batch, L tokens, F width after the projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from heads import losses, metrics
from heads.base import BaseKaggleHead
from heads.decoding import best_spans


class QuestionAnsweringHead(BaseKaggleHead):
    """`(start_t, end_t) = W f_t + b` for every token (Devlin et al. 2019, section 4.2).

    Outputs: `start_logits (B, L)`, `end_logits (B, L)`; padded positions get the lowest finite number.
    Loss: the mean of two cross-entropies over positions; a position outside `[0, L)` does not count. Labels are a
    mapping with `start_positions` and `end_positions`, a pair of `(B,)` arrays, or one array `(B, 2)`.
    """

    POOLED = False

    def _fixed_output_size(self) -> int:
        return 2

    def forward(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> dict[str, mx.array]:
        features, mask = self._token_features(hidden_states, attention_mask)
        logits = self.output(features).astype(mx.float32)
        if mask is not None:
            logits = mx.where(mx.expand_dims(mask, -1), logits, mx.finfo(mx.float32).min)
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}

    def compute_loss(self, predictions: Mapping[str, mx.array], targets: Any) -> mx.array:
        """Return the scalar loss; see the class for the forms of `targets`."""
        total = mx.array(0.0)
        for name, positions in zip(("start_logits", "end_logits"), span_labels(targets), strict=True):
            logits = predictions[name]
            inside = (positions >= 0) & (positions < logits.shape[1])
            total = total + losses.cross_entropy(logits, mx.where(inside, positions, losses.IGNORE_INDEX))
        return total / 2

    def decode(
        self,
        predictions: Mapping[str, mx.array],
        allowed: mx.array | None = None,
        max_answer_length: int = 30,
        top_k: int = 1,
    ) -> list[list[tuple[int, int, float]]]:
        """Return the best spans of each row as `(start, end, score)`; see `heads.decoding.best_spans`.

        Args:
            predictions: Outputs of the head.
            allowed: `(B, L)`, 1 where an answer may start and end: the tokens of the context without padding. Without
                it padding is excluded.
            max_answer_length: Largest number of tokens in a span.
            top_k: Number of spans per row.
        """
        start, end = predictions["start_logits"], predictions["end_logits"]
        real = start > mx.finfo(mx.float32).min
        allowed = real if allowed is None else real & allowed.astype(mx.bool_)
        return best_spans(start, end, allowed, max_answer_length, top_k)

    def compute_metrics(self, predictions: Mapping[str, mx.array], targets: Any) -> dict[str, float]:
        """Return exact_match and f1 of the best span's token positions against the labelled span."""
        length = predictions["start_logits"].shape[1]
        spans = self.decode(predictions, max_answer_length=length)
        found = [row[0][:2] if row else (-1, -1) for row in spans]
        wanted = mx.stack(span_labels(targets), axis=1)
        # As in the loss, a row whose answer was cut off by truncation does not count.
        return metrics.span_metrics(mx.array(found), mx.where(wanted < length, wanted, -1))


def span_labels(labels: Any) -> tuple[mx.array, mx.array]:
    """Return start and end positions `(B,)` from a mapping, a pair, or an array `(B, 2)`."""
    if isinstance(labels, Mapping):
        return labels["start_positions"], labels["end_positions"]
    if isinstance(labels, Sequence) and len(labels) == 2:
        return labels[0], labels[1]
    if isinstance(labels, mx.array) and labels.ndim == 2 and labels.shape[1] == 2:
        return labels[:, 0], labels[:, 1]
    got = getattr(labels, "shape", labels)
    raise ValueError(
        f"[QuestionAnsweringHead] expected labels (B, 2), a pair, or a mapping but got {got}. "
        "Give start_positions and end_positions."
    )
