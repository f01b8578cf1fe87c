"""Ensemble classification: several small classifiers on the same features, combined.

Dimension key: B batch, L tokens, F width after the projection, n members, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads import losses, metrics
from heads.base import BaseKaggleHead
from heads.classification import class_labels, class_outputs
from heads.initialization import truncated_normal_linear
from heads.projection import NormedBlock


class EnsembleMember(nn.Module):
    """`W2 LayerNorm(Dropout(act(W1 f)))` with half the width inside: `(B, F)` -> `(B, C)`."""

    def __init__(self, input_size: int, output_size: int, activation: str, dropout: float, std: float):
        super().__init__()
        hidden = max(1, input_size // 2)
        self.block = NormedBlock(input_size, hidden, activation, dropout)
        self.output = truncated_normal_linear(hidden, output_size, std=std)

    def __call__(self, features: mx.array) -> mx.array:
        return self.output(self.block(features))


class EnsembleClassificationHead(BaseKaggleHead):
    """n members with different activations and dropouts; their logits over `temperature` are combined:

    `ensemble_method` "average": the mean; "weighted": learned weights `softmax(w)`; "attention": weights
    `softmax(A f)` per sample. Lists shorter than n repeat from the start; `member_poolings` gives members their own
    pooling.

    Outputs: `logits (B, C)`, `probabilities (B, C)`, `predictions (B,)`, `member_logits (B, n, C)`.
    Loss: cross-entropy of the combined logits plus `diversity_weight` times the mean cosine similarity of the members'
    probabilities over the batch. Labels `(B,)` or `(B, 1)`.
    Options: `num_heads` is n (3 unless `ensemble_size` says else), `member_activations`, `member_dropouts`.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "num_heads": None,
        "ensemble_method": "average",
        "temperature": 1.0,
        "diversity_weight": 0.01,
        "member_activations": ["gelu", "relu", "silu"],
        "member_dropouts": [0.1, 0.2, 0.3],
        "member_poolings": None,
    }
    FEATURES = frozenset({"ensemble_size", "label_smoothing", "class_weights"})
    labels_are_classes = True

    def _check_options(self) -> None:
        super()._check_options()
        size = self.config.ensemble_size
        self.num_members = self.option("num_heads") or (size if size > 1 else 3)
        if self.option("num_heads") and size > 1 and self.option("num_heads") != size:
            raise ValueError(
                f"[EnsembleClassificationHead] expected num_heads and ensemble_size to agree but got "
                f"{self.option('num_heads')} and {size}. Give one of them."
            )
        method = self.option("ensemble_method")
        if method not in ("average", "weighted", "attention") or self.option("temperature") <= 0:
            raise ValueError(
                f"[EnsembleClassificationHead] expected ensemble_method 'average', 'weighted' or 'attention' and a "
                f"positive temperature but got {method!r} and {self.option('temperature')}. Correct them."
            )

    def _build_pooling(self) -> None:
        super()._build_pooling()
        names = self.option("member_poolings")
        if names:
            if not self.config.use_pooling:
                raise ValueError(
                    "[EnsembleClassificationHead] expected use_pooling=True with member_poolings but got False. "
                    "Remove member_poolings."
                )
            size = self.config.input_size
            self.poolings = [self._new_pooling(names[i % len(names)], size) for i in range(self.num_members)]
            del self["pooling"]

    def _build_output_layer(self) -> None:
        config, size, n = self.config, self.projection_output_size, self.num_members
        activations, dropouts = self.option("member_activations"), self.option("member_dropouts")
        self.members = [
            EnsembleMember(
                size,
                config.output_size,
                activations[i % len(activations)],
                dropouts[i % len(dropouts)],
                config.initializer_range,
            )
            for i in range(n)
        ]
        if self.option("ensemble_method") == "weighted":
            self.member_weights = mx.full((n,), 1 / n)
        elif self.option("ensemble_method") == "attention":
            self.member_attention = truncated_normal_linear(size, n, std=config.initializer_range)

    def _build_loss_function(self) -> None:
        weights = self.config.class_weights
        self._class_weights = None if weights is None else mx.array(weights)

    def _member_features(self, hidden_states: mx.array, attention_mask: mx.array | None) -> list[mx.array]:
        if "poolings" not in self:
            return [self._pooled_features(hidden_states, attention_mask)] * self.num_members
        hidden_states, mask = self._contextualise(hidden_states, attention_mask)
        return [self.projection(pooling(hidden_states, mask)) for pooling in self.poolings]

    def forward(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> dict[str, mx.array]:
        features = self._member_features(hidden_states, attention_mask)
        logits = [member(x).astype(mx.float32) for member, x in zip(self.members, features, strict=True)]
        logits = mx.stack(logits, axis=1) / self.option("temperature")
        method = self.option("ensemble_method")
        if method == "average":
            combined = mx.mean(logits, axis=1)
        else:
            if method == "weighted":
                weights = mx.softmax(self.member_weights.astype(mx.float32))
            else:
                mean = sum(features) / len(features)
                weights = mx.softmax(self.member_attention(mean).astype(mx.float32), axis=-1)
            combined = mx.sum(mx.expand_dims(weights, -1) * logits, axis=1)
        return {**class_outputs(combined), "member_logits": logits}

    def compute_loss(self, predictions: Mapping[str, mx.array], targets: mx.array) -> mx.array:
        """Return the scalar loss for `targets (B,)` or `(B, 1)`."""
        labels = class_labels(targets)
        loss = losses.cross_entropy(predictions["logits"], labels, self._class_weights, self.config.label_smoothing)
        members = mx.softmax(predictions["member_logits"], axis=-1)
        return loss + self.option("diversity_weight") * losses.ensemble_diversity_loss(members)

    def compute_metrics(self, predictions: Mapping[str, mx.array], targets: mx.array) -> dict[str, float]:
        """Return the metrics of the multiclass head for the combined prediction."""
        return metrics.multiclass_metrics(predictions["logits"], class_labels(targets))
