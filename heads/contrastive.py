"""Contrastive and metric learning: embeddings for similarity search and retrieval.

Dimension key: B batch, N texts of a row, L tokens, D hidden size, F width after the projection, E embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads import losses, metrics
from heads.base import BaseKaggleHead
from heads.initialization import glorot_linear
from heads.masks import as_boolean_mask

_PAIR_LOSSES = ("info_nce", "pair_contrastive", "cosine_mse")
_LABELLED = ("supervised", "pair_contrastive", "cosine_mse")


class ContrastiveLearningHead(BaseKaggleHead):
    """`e = W f + b`, or `W2 relu(W1 f)` with `projection_hidden_dim`; length 1 unless `normalize_embeddings` is off.

    Input: `(B, L, D)` or `(B, D)`: one text per row; `(B, N, L, D)`, or with `use_pooling=False` `(B, N, D)`: N texts
    per row (two make a pair, three an anchor with a positive and a negative, and so on).
    Outputs: `embeddings (B, E)` or `(B, N, E)`; for pairs `similarities (B,)` and `logits`, which are
    `similarities / temperature`; for N > 2 both are `(B, N, N)`.
    Loss `loss`: "info_nce" on pairs, other rows being negatives (van den Oord et al. 2018; symmetric); "supervised" on
    single texts with class labels (Khosla et al. 2020); "pair_contrastive" with labels 0/1 and `margin` (Hadsell et al.
    2006); "triplet" with `margin`; "cosine_mse" with target similarities; "multiple_negatives" on N >= 2 (Henderson et
    al. 2017, scale `1 / temperature`). By default "supervised" for one text per row, "info_nce" for pairs and
    "multiple_negatives" for more. `projection_dim` is E.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "projection_dim": 128,
        "projection_hidden_dim": None,
        "normalize_embeddings": True,
        "temperature": 0.07,
        "loss": None,
        "margin": 1.0,
    }

    @property
    def needs_labels(self) -> bool:
        """Whether the loss needs labels; without a name it is one that does for single texts alone."""
        return self.option("loss") in _LABELLED

    @property
    def takes_groups(self) -> bool:
        """Whether the loss takes several texts per row; without a name it takes what it is given."""
        return self.option("loss") not in (None, "supervised")

    def _fixed_output_size(self) -> int:
        return self.option("projection_dim")

    def _build_output_layer(self) -> None:
        width, hidden = self.projection_output_size, self.option("projection_hidden_dim")
        if hidden:
            self.hidden = glorot_linear(width, hidden)
        self.output = glorot_linear(hidden or width, self.config.output_size, self.config.output_bias)

    def _build_loss_function(self) -> None:
        known = (None, *_PAIR_LOSSES, "supervised", "triplet", "multiple_negatives")
        if self.option("loss") not in known or self.option("temperature") <= 0:
            raise ValueError(
                f"[{type(self).__name__}] expected loss among {known} and a positive temperature but got "
                f"{self.option('loss')!r} and {self.option('temperature')}. Correct them."
            )

    def _embed(self, features: mx.array) -> mx.array:
        if "hidden" in self:
            features = nn.relu(self.hidden(features))
        return self.output(features)

    def forward(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> dict[str, mx.array]:
        several = hidden_states.ndim == 4 or (hidden_states.ndim == 3 and not self.config.use_pooling)
        shape, mask = hidden_states.shape, attention_mask
        if hidden_states.ndim == 4:
            mask = as_boolean_mask(mask, shape[:3])
            mask = None if mask is None else mask.flatten(0, 1)
        flat = hidden_states.flatten(0, 1) if several else hidden_states
        embeddings = self._embed(self._pooled_features(flat, mask)).astype(mx.float32)
        if self.option("normalize_embeddings"):
            embeddings = losses.unit_vectors(embeddings)
        if not several:
            return {"embeddings": embeddings}
        embeddings = embeddings.reshape(shape[0], shape[1], -1)
        units = losses.unit_vectors(embeddings)
        pairs = shape[1] == 2
        similarities = mx.sum(units[:, 0] * units[:, 1], axis=-1) if pairs else units @ units.swapaxes(1, 2)
        logits = similarities / self.option("temperature")
        return {"embeddings": embeddings, "similarities": similarities, "logits": logits}

    def _loss_of(self, embeddings: mx.array) -> str:
        """Return the name of the loss for embeddings of this shape; ValueError if they do not fit."""
        texts = 1 if embeddings.ndim == 2 else embeddings.shape[1]
        name = self.option("loss") or {1: "supervised", 2: "info_nce"}.get(texts, "multiple_negatives")
        fits = {"supervised": texts == 1, "triplet": texts == 3, "multiple_negatives": texts >= 2}.get(name, texts == 2)
        if not fits:
            raise ValueError(
                f"[{type(self).__name__}] expected other embeddings for loss {name!r} but got {texts} text(s) per row. "
                "supervised takes 1, pairs are 2, triplet takes 3, multiple_negatives 2 or more."
            )
        return name

    def compute_loss(self, predictions: Mapping[str, mx.array], targets: mx.array | None = None) -> mx.array:
        """Return the scalar loss; `targets (B,)` are class labels, pair labels or similarities, if the loss has any."""
        embeddings, temperature = predictions["embeddings"], self.option("temperature")
        name = self._loss_of(embeddings)
        unit = self.option("normalize_embeddings")
        if name in _LABELLED and targets is None:
            raise ValueError(
                f"[{type(self).__name__}] expected labels with loss {name!r} but got none. Give some, or several texts "
                "per row."
            )
        if name == "supervised":
            return losses.supervised_contrastive_loss(embeddings, targets, temperature, unit)
        if name == "multiple_negatives":
            negatives = embeddings[:, 2:] if embeddings.shape[1] > 2 else None
            return losses.multiple_negatives_ranking_loss(
                embeddings[:, 0], embeddings[:, 1], negatives, 1 / temperature
            )
        if name == "triplet":
            return losses.triplet_loss(*(embeddings[:, i] for i in range(3)), margin=self.option("margin"))
        first, second = embeddings[:, 0], embeddings[:, 1]
        if name == "info_nce":
            return losses.info_nce_loss(first, second, temperature, normalize=unit)
        if name == "pair_contrastive":
            return losses.pair_contrastive_loss(first, second, targets, self.option("margin"))
        return losses.cosine_mse_loss(first, second, targets)

    def compute_metrics(self, predictions: Mapping[str, mx.array], targets: mx.array | None = None) -> dict[str, float]:
        """Return recall@1, @5 and @10; for labelled pairs the correlation of similarity and target."""
        embeddings, name = predictions["embeddings"], self._loss_of(predictions["embeddings"])
        if name in ("pair_contrastive", "cosine_mse"):
            return metrics.similarity_metrics(predictions["similarities"], targets)
        if embeddings.ndim == 2:
            # Every text looks for the others of its class; its own row is never a hit.
            itself = mx.eye(embeddings.shape[0], dtype=mx.bool_)
            units = losses.unit_vectors(embeddings)
            similarities = mx.where(itself, -2.0, units @ units.T)
            same = (mx.expand_dims(targets, 1) == mx.expand_dims(targets, 0)) & ~itself
            return {f"recall@{k}": metrics.recall_at_k(similarities, same, k) for k in (1, 5, 10)}
        return metrics.retrieval_metrics(embeddings[:, 0], embeddings[:, 1])


class MetricLearningHead(ContrastiveLearningHead):
    """`e = W2 Dropout(relu(W1 f))` with an inner width of 2E, length 1; trained with the hardest triplets of the batch.

    Outputs as `ContrastiveLearningHead`. Loss on single texts with class labels: for each anchor
    `max(0, d(a, hardest positive) - d(a, hardest negative) + margin)`, mean over anchors that have both (Hermans et al.
    2017), `distance` "cosine" (1 - cos), "euclidean" or "manhattan".
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "projection_dim": 128,
        "normalize_embeddings": True,
        "margin": 0.5,
        "distance": "cosine",
    }
    needs_labels = True
    takes_groups = False

    def option(self, name: str) -> Any:
        """Return an option; those that only the contrastive head has stand at their defaults."""
        return self.config.extra.get(name, self.OPTIONS.get(name, ContrastiveLearningHead.OPTIONS.get(name)))

    def _build_output_layer(self) -> None:
        size = self.config.output_size
        self.hidden = glorot_linear(self.projection_output_size, 2 * size)
        self.dropout = nn.Dropout(self.config.dropout_prob)
        self.output = glorot_linear(2 * size, size, self.config.output_bias)

    def _build_loss_function(self) -> None:
        if self.option("distance") not in ("cosine", "euclidean", "manhattan"):
            raise ValueError(
                f"[MetricLearningHead] expected distance 'cosine', 'euclidean' or 'manhattan' but got "
                f"{self.option('distance')!r}. Choose one of the three."
            )

    def _embed(self, features: mx.array) -> mx.array:
        return self.output(self.dropout(nn.relu(self.hidden(features))))

    def _distances(self, embeddings: mx.array) -> mx.array:
        if self.option("distance") == "cosine":
            units = losses.unit_vectors(embeddings)
            return 1 - units @ units.T
        differences = mx.expand_dims(embeddings, 1) - mx.expand_dims(embeddings, 0)
        if self.option("distance") == "manhattan":
            return mx.sum(mx.abs(differences), axis=-1)
        squares = mx.sum(mx.square(differences), axis=-1)
        apart = squares > 0  # the root has no finite gradient at 0
        return mx.where(apart, mx.sqrt(mx.where(apart, squares, 1.0)), 0.0)

    def compute_loss(self, predictions: Mapping[str, mx.array], targets: mx.array) -> mx.array:
        """Return the scalar loss for class labels `targets (B,)`."""
        embeddings = predictions["embeddings"]
        self._loss_of(embeddings)
        distances = self._distances(embeddings)
        same = mx.expand_dims(targets, 1) == mx.expand_dims(targets, 0)
        positives = same & ~mx.eye(targets.shape[0], dtype=mx.bool_)
        farthest = mx.max(mx.where(positives, distances, -mx.inf), axis=1)
        nearest = mx.min(mx.where(same, mx.inf, distances), axis=1)
        complete = mx.any(positives, axis=1) & mx.any(~same, axis=1)
        gap = mx.where(complete, farthest, 0.0) - mx.where(complete, nearest, 0.0) + self.option("margin")
        return losses.reduce_loss(mx.where(complete, mx.maximum(gap, 0.0), 0.0), "mean", complete)
