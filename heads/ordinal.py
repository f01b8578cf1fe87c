"""Ordinal regression: K ordered classes from K - 1 thresholds.

Dimension key: B batch, F width after the projection, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads import losses, metrics
from heads.base import BaseKaggleHead
from heads.classification import class_labels
from heads.initialization import truncated_normal_linear


class OrdinalRegressionHead(BaseKaggleHead):
    """Logits of `P(y > k)` for k = 0 .. K-2, in one of three ways (`ordinal_type`):

    * "coral": `w . f + b_k`, shared w, b falling at the start (Cao et al. 2020); binary cross-entropy per threshold;
    * "cumulative_logits": `w . f - theta_k`, theta rising by a cumulative softplus (McCullagh 1980, proportional odds);
      negative log-likelihood of the class;
    * "all_threshold": `W f + b` over `temperature`, independent thresholds; binary cross-entropy per threshold.

    Outputs: `threshold_logits` = `logits (B, K-1)`, `cumulative_probabilities (B, K-1)` = P(y <= k),
    `class_probabilities` = `probabilities (B, K)`, `predictions (B,)` = the number of thresholds with `P(y > k) > 1/2`
    (the median class), `most_probable (B,)` = the argmax of the class probabilities.
    `class_weights` weigh samples by class. Labels `(B,)` or `(B, 1)`, 0 to K-1, -100 to ignore.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {"ordinal_type": "coral", "temperature": 1.0}
    FEATURES = frozenset({"class_weights"})
    labels_are_classes = True

    def _build_output_layer(self) -> None:
        kind, classes = self.option("ordinal_type"), self.config.output_size
        if kind not in ("coral", "cumulative_logits", "all_threshold"):
            raise ValueError(
                "[OrdinalRegressionHead] expected ordinal_type 'coral', 'cumulative_logits' or 'all_threshold' but "
                f"got {kind!r}. Choose one of the three."
            )
        if classes < 2 or self.option("temperature") <= 0:
            raise ValueError(
                f"[OrdinalRegressionHead] expected at least 2 classes and a positive temperature but got {classes} and "
                f"{self.option('temperature')}. Correct them."
            )
        if kind == "all_threshold":
            self.output = self._output_layer(classes - 1)
            return
        # The thresholds are the biases.
        std = self.config.initializer_range
        self.output = truncated_normal_linear(self.projection_output_size, 1, bias=False, std=std)
        if kind == "coral":
            self.threshold_bias = mx.arange(classes - 1, 0, -1) / (classes - 1)
        else:
            self.first_threshold = mx.zeros((1,))
            self.threshold_steps = mx.zeros((classes - 2,))

    def _build_loss_function(self) -> None:
        weights = self.config.class_weights
        if weights is not None and len(weights) != self.config.output_size:
            raise ValueError(
                f"[OrdinalRegressionHead] expected {self.config.output_size} class_weights but got {len(weights)}. "
                "Give one weight per class."
            )
        self._class_weights = None if weights is None else mx.array(weights)

    def _rising_thresholds(self) -> mx.array:
        """Return theta `(K-1,)`, rising."""
        steps = mx.cumsum(nn.softplus(self.threshold_steps.astype(mx.float32)))
        return mx.concatenate([self.first_threshold, self.first_threshold + steps])

    def forward(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> dict[str, mx.array]:
        scores = self.output(self._pooled_features(hidden_states, attention_mask)).astype(mx.float32)
        kind = self.option("ordinal_type")
        if kind == "coral":
            logits = scores + self.threshold_bias
        elif kind == "cumulative_logits":
            logits = scores - self._rising_thresholds()
        else:
            logits = scores / self.option("temperature")
        probabilities = losses.ordinal_probabilities(logits)
        return {
            "threshold_logits": logits,
            "logits": logits,
            "cumulative_probabilities": mx.sigmoid(-logits),
            "class_probabilities": probabilities,
            "probabilities": probabilities,
            "predictions": mx.sum(logits > 0, axis=-1).astype(mx.int32),
            "most_probable": mx.argmax(probabilities, axis=-1).astype(mx.int32),
        }

    def compute_loss(
        self, predictions: Mapping[str, mx.array], targets: mx.array, sample_weights: mx.array | None = None
    ) -> mx.array:
        """Return the scalar loss for `targets (B,)`, with optional `sample_weights (B,)`."""
        logits, labels = predictions["threshold_logits"], class_labels(targets)
        if self.option("ordinal_type") == "cumulative_logits":
            return losses.cumulative_logits_loss(-logits, labels, self._class_weights, sample_weights)
        return losses.ordinal_loss(logits, labels, self._class_weights, sample_weights)

    def compute_metrics(self, predictions: Mapping[str, mx.array], targets: mx.array) -> dict[str, float]:
        """Return accuracy, mae, ordinal_accuracy, kendall_tau and qwk."""
        return metrics.ordinal_metrics(predictions["predictions"], class_labels(targets), self.config.output_size)
