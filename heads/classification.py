"""Sequence classification: binary, multiclass, multilabel, and the text classification of the language tasks.

Dimension key: B batch, L tokens, D hidden size, F width after the projection, C classes or labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from heads import losses, metrics
from heads.base import BaseKaggleHead

_FOCAL = {"loss": None, "focal_gamma": 2.0, "focal_alpha": None}


class _ClassificationHead(BaseKaggleHead):
    """What the three kinds share: the choice of the loss by name, class weights, label smoothing."""

    OPTIONS: ClassVar[dict[str, Any]] = _FOCAL
    FEATURES = frozenset({"use_competition_tricks", "label_smoothing", "class_weights"})
    PLAIN_LOSS: ClassVar[str] = "cross_entropy"

    def _build_loss_function(self) -> None:
        tricks = self.config.use_competition_tricks
        self.loss = self.option("loss") or ("focal" if tricks else self.PLAIN_LOSS)
        if self.loss not in (self.PLAIN_LOSS, "focal"):
            raise ValueError(
                f"[{type(self).__name__}] expected loss {self.PLAIN_LOSS!r} or 'focal' but got {self.loss!r}. "
                "Choose one of the two."
            )
        weights = self.config.class_weights
        if weights is not None and len(weights) != self.config.output_size:
            raise ValueError(
                f"[{type(self).__name__}] expected {self.config.output_size} class_weights but got {len(weights)}. "
                "Give one weight per class."
            )
        self._class_weights = None if weights is None else mx.array(weights)
        self.label_smoothing = self.config.label_smoothing

    def _focal_alpha(self, default: float) -> float:
        alpha = self.option("focal_alpha")
        return default if alpha is None else alpha


class BinaryClassificationHead(_ClassificationHead):
    """Two classes from one logit: `z = W f + b` (divided by a learned temperature if asked), `p = sigmoid(z)`.

    Outputs: `logits (B, 1)`, `probabilities (B, 1)`, `probabilities_2class (B, 2)`, `predictions (B, 1)` int32.
    Loss: binary cross-entropy from the logit; `loss="focal"` (Lin et al. 2017, alpha 0.25, gamma 2), `pos_weight`,
    `class_weights` (two values, weighted mean), `label_smoothing`. Labels `(B,)` or `(B, 1)` of 0 and 1.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {**_FOCAL, "pos_weight": None, "use_temperature": None, "threshold": 0.5}
    PLAIN_LOSS = "bce"

    def _build_output_layer(self) -> None:
        self.output = self._output_layer(1)
        learned = self.option("use_temperature")
        if self.config.use_competition_tricks if learned is None else learned:
            self.temperature = mx.ones((1,))

    def _build_loss_function(self) -> None:
        super()._build_loss_function()
        if self._class_weights is not None and self.option("pos_weight") is not None:
            raise ValueError(
                "[BinaryClassificationHead] expected class_weights or pos_weight but got both. Give one of them."
            )

    def forward(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> dict[str, mx.array]:
        logits = self.output(self._pooled_features(hidden_states, attention_mask)).astype(mx.float32)
        if "temperature" in self:
            logits = logits / self.temperature
        positive = mx.sigmoid(logits)
        return {
            "logits": logits,
            "probabilities": positive,
            "probabilities_2class": mx.concatenate([1 - positive, positive], axis=-1),
            "predictions": (positive > self.option("threshold")).astype(mx.int32),
        }

    def compute_loss(self, predictions: Mapping[str, mx.array], targets: mx.array) -> mx.array:
        """Return the scalar loss for `targets (B,)` or `(B, 1)`."""
        logits, gamma = predictions["logits"], self.option("focal_gamma")
        targets = losses.align_targets(logits, targets)
        smoothing = self.label_smoothing
        if self._class_weights is not None:  # the same two classes as a softmax over (0, z): weighted mean as in torch
            both, classes = mx.concatenate([mx.zeros_like(logits), logits], axis=-1), targets[:, 0]
            if self.loss == "focal":
                alpha = self._focal_alpha(1.0)
                return losses.focal_loss(both, classes, gamma, alpha, self._class_weights, smoothing)
            return losses.cross_entropy(both, classes, self._class_weights, smoothing)
        pos_weight = self.option("pos_weight")
        if self.loss == "focal":
            alpha = self._focal_alpha(0.25)
            return losses.binary_focal_loss(logits, targets, gamma, alpha, pos_weight, smoothing)
        return losses.binary_cross_entropy(logits, targets, pos_weight, label_smoothing=smoothing)

    def compute_metrics(self, predictions: Mapping[str, mx.array], targets: mx.array) -> dict[str, float]:
        """Return accuracy, precision, recall, f1 and auc."""
        return metrics.binary_metrics(predictions["probabilities"], targets, self.option("threshold"))


class MulticlassClassificationHead(_ClassificationHead):
    """One of C classes: `logits = W f + b`, `probabilities = softmax(logits)`.

    Outputs: `logits (B, C)`, `probabilities (B, C)`, `predictions (B,)` int32.
    Loss: cross-entropy with `class_weights` and `label_smoothing`, or `loss="focal"` (gamma 2). Labels `(B,)` or
    `(B, 1)`, -100 to ignore. Tricks: focal loss and a smoothing of 0.1.
    """

    labels_are_classes = True

    def _build_loss_function(self) -> None:
        super()._build_loss_function()
        if self.config.use_competition_tricks and not self.label_smoothing:
            self.label_smoothing = 0.1

    def forward(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> dict[str, mx.array]:
        return class_outputs(self.output(self._pooled_features(hidden_states, attention_mask)))

    def compute_loss(self, predictions: Mapping[str, mx.array], targets: mx.array) -> mx.array:
        """Return the scalar loss for `targets (B,)` or `(B, 1)`."""
        logits, targets = predictions["logits"], class_labels(targets)
        if self.loss == "focal":
            gamma, alpha = self.option("focal_gamma"), self._focal_alpha(1.0)
            return losses.focal_loss(logits, targets, gamma, alpha, self._class_weights, self.label_smoothing)
        return losses.cross_entropy(logits, targets, self._class_weights, self.label_smoothing)

    def compute_metrics(self, predictions: Mapping[str, mx.array], targets: mx.array) -> dict[str, float]:
        """Return accuracy, macro and micro f1, macro precision and recall, and top3_accuracy from three classes on."""
        return metrics.multiclass_metrics(predictions["logits"], class_labels(targets))


class TextClassificationHead(MulticlassClassificationHead):
    """Classification of a text by `create_nlp_head`: a multiclass head, and with one class a regression.

    Outputs: `logits (B, C)`, `probabilities (B, C)`, `predictions (B,)`; for C = 1 `logits (B, 1)` and `value (B,)`
    with the mean squared error as loss (a softmax over one class would be the constant 1).
    """

    @property
    def labels_are_classes(self) -> bool:
        """Whether labels are numbers of classes: not with one class."""
        return self.config.output_size > 1

    def _build_loss_function(self) -> None:
        super()._build_loss_function()
        if self.config.output_size == 1 and (self.label_smoothing or self._class_weights is not None):
            raise ValueError(
                "[TextClassificationHead] expected no label_smoothing and no class_weights with one class, which is a "
                "regression. Remove them."
            )

    def forward(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> dict[str, mx.array]:
        if self.config.output_size > 1:
            return super().forward(hidden_states, attention_mask)
        logits = self.output(self._pooled_features(hidden_states, attention_mask)).astype(mx.float32)
        return {"logits": logits, "value": mx.squeeze(logits, -1)}

    def compute_loss(self, predictions: Mapping[str, mx.array], targets: mx.array) -> mx.array:
        """Return the scalar loss for class indices, or for values when there is one class."""
        if self.config.output_size > 1:
            return super().compute_loss(predictions, targets)
        return losses.mse_loss(predictions["logits"], targets)

    def compute_metrics(self, predictions: Mapping[str, mx.array], targets: mx.array) -> dict[str, float]:
        """Return the metrics of the multiclass head, or of a regression when there is one class."""
        if self.config.output_size > 1:
            return super().compute_metrics(predictions, targets)
        return metrics.regression_metrics(predictions["value"], targets)


class MultilabelClassificationHead(_ClassificationHead):
    """Any subset of C labels: `p = sigmoid(W f + b)`, a label is predicted where `p` exceeds its threshold.

    Outputs: `logits (B, C)`, `probabilities (B, C)`, `predictions (B, C)` int32.
    Loss: mean binary cross-entropy over B x C with `pos_weight` (C values), `class_weights` (label weights),
    `label_smoothing` (`y (1 - e) + e / 2`), or `loss="focal"`. Thresholds start at 0.5 and are saved but not trained;
    `fit_thresholds` chooses each to maximise the F1 of its label.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {**_FOCAL, "pos_weight": None}
    PLAIN_LOSS = "bce"
    SAVED_BUFFERS: ClassVar[tuple[str, ...]] = ("thresholds",)

    def _build_output_layer(self) -> None:
        super()._build_output_layer()
        self._thresholds = mx.full((self.config.output_size,), 0.5)

    def _build_loss_function(self) -> None:
        super()._build_loss_function()
        weight = self.option("pos_weight")
        self._pos_weight = None if weight is None else mx.array(weight)
        if self.loss == "focal" and self._class_weights is not None:
            raise ValueError(
                "[MultilabelClassificationHead] expected no class_weights with the focal loss. Use pos_weight instead."
            )

    def forward(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> dict[str, mx.array]:
        logits = self.output(self._pooled_features(hidden_states, attention_mask)).astype(mx.float32)
        probabilities = mx.sigmoid(logits)
        predictions = (probabilities > self._thresholds).astype(mx.int32)
        return {"logits": logits, "probabilities": probabilities, "predictions": predictions}

    def compute_loss(self, predictions: Mapping[str, mx.array], targets: mx.array) -> mx.array:
        """Return the scalar loss for `targets (B, C)` of 0 and 1."""
        logits = predictions["logits"]
        if self.loss == "focal":
            gamma, alpha = self.option("focal_gamma"), self._focal_alpha(0.25)
            return losses.binary_focal_loss(logits, targets, gamma, alpha, self._pos_weight, self.label_smoothing)
        return losses.binary_cross_entropy(
            logits, targets, self._pos_weight, self._class_weights, label_smoothing=self.label_smoothing
        )

    def compute_metrics(self, predictions: Mapping[str, mx.array], targets: mx.array) -> dict[str, float]:
        """Return subset accuracy, hamming loss, macro and micro f1 at the head's thresholds."""
        return metrics.multilabel_metrics(predictions["predictions"], targets)

    def fit_thresholds(self, probabilities: mx.array, labels: mx.array) -> mx.array:
        """Set each label's threshold to the value that maximises its F1 on `probabilities` and `labels`, both (B, C).

        A label without positives keeps its threshold. Returns the thresholds `(C,)`.
        """
        scores, truth = np.array(probabilities.astype(mx.float32)), np.array(labels) > 0
        if scores.shape != truth.shape or scores.shape[-1] != self.config.output_size:
            raise ValueError(
                f"[fit_thresholds] expected two arrays of shape (B, {self.config.output_size}) but got {scores.shape} "
                f"and {truth.shape}. Give probabilities and 0/1 labels."
            )
        thresholds = np.array(self._thresholds)
        for label in np.flatnonzero(truth.any(axis=0)):
            thresholds[label] = best_f1_threshold(scores[:, label], truth[:, label])
        self._thresholds = mx.array(thresholds)
        return self._thresholds


def best_f1_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the threshold `t` for which predicting `score > t` has the best F1; halfway between two scores."""
    order = np.argsort(-scores, kind="stable")
    scores, truth = scores[order], truth[order]
    f1 = 2 * np.cumsum(truth) / (np.arange(1, len(truth) + 1) + truth.sum())
    f1[:-1][scores[:-1] == scores[1:]] = -1.0  # equal scores cannot be told apart
    best = int(np.argmax(f1))
    below = scores[best + 1] if best + 1 < len(scores) else 0.0
    return float((scores[best] + below) / 2)


def class_outputs(logits: mx.array) -> dict[str, mx.array]:
    """Return logits (float32), softmax probabilities and argmax predictions (int32) for `logits (..., C)`."""
    logits = logits.astype(mx.float32)
    return {
        "logits": logits,
        "probabilities": mx.softmax(logits, axis=-1),
        "predictions": mx.argmax(logits, axis=-1).astype(mx.int32),
    }


def class_labels(labels: mx.array) -> mx.array:
    """Return class indices `(B,)` for labels `(B,)` or `(B, 1)`."""
    return mx.squeeze(labels, -1) if labels.ndim == 2 and labels.shape[-1] == 1 else labels


__all__ = [
    "BinaryClassificationHead",
    "MulticlassClassificationHead",
    "MultilabelClassificationHead",
    "TextClassificationHead",
]
