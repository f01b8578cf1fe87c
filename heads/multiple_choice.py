"""Multiple choice: one score per choice, a softmax over the choices.

Dimension key: B batch, N choices, L tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from heads import losses
from heads.base import BaseKaggleHead
from heads.classification import class_labels, class_outputs
from heads.masks import as_boolean_mask


class MultipleChoiceHead(BaseKaggleHead):
    """`s_n = w . f(pool(x_n)) + b` for each choice n, `probabilities = softmax_n(s)` (Radford et al. 2018).

    Input: `(B, N, L, D)` with a mask `(B, N, L)`, or pooled `(B, N, D)`.
    Outputs: `logits (B, N)`, `probabilities (B, N)`, `predictions (B,)` int32.
    Loss: cross-entropy over the choices, with `label_smoothing`. Labels `(B,)` or `(B, 1)`.
    """

    FEATURES = frozenset({"label_smoothing"})
    labels_are_classes = True
    takes_groups = True

    def _fixed_output_size(self) -> int:
        return 1

    def forward(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> dict[str, mx.array]:
        if hidden_states.ndim not in (3, 4):
            raise ValueError(
                f"[MultipleChoiceHead] expected hidden states (B, N, L, D) or (B, N, D) but got shape "
                f"{hidden_states.shape}. Stack the choices on axis 1."
            )
        mask = None
        if hidden_states.ndim == 4:
            mask = as_boolean_mask(attention_mask, hidden_states.shape[:3])
            mask = None if mask is None else mask.flatten(0, 1)
        scores = self.output(self._pooled_features(hidden_states.flatten(0, 1), mask))
        return class_outputs(scores.reshape(hidden_states.shape[:2]))

    def compute_loss(self, predictions: Mapping[str, mx.array], targets: mx.array) -> mx.array:
        """Return the scalar loss for `targets (B,)`, the index of the right choice."""
        labels = class_labels(targets)
        return losses.cross_entropy(predictions["logits"], labels, label_smoothing=self.config.label_smoothing)

    def compute_metrics(self, predictions: Mapping[str, mx.array], targets: mx.array) -> dict[str, float]:
        """Return the accuracy."""
        return {"accuracy": mx.mean(predictions["predictions"] == class_labels(targets)).item()}
