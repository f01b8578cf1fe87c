"""Text similarity: an embedding per text, a score per pair.

Dimension key: B batch, L tokens, D hidden size, F width after the projection, E embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import mlx.core as mx

from heads import losses, metrics
from heads.base import BaseKaggleHead
from heads.initialization import glorot_linear, truncated_normal_linear
from heads.projection import activation_of

_LOSSES = ("mse", "bce", "pair_contrastive", "multiple_negatives")


class TextSimilarityHead(BaseKaggleHead):
    """`e = W f + b` for one text; `similarity(e1, e2)` for a pair (Reimers & Gurevych 2019).

    `similarity_function`: "cosine" `e1.e2 / (|e1| |e2|)`, "dot" `e1.e2`, or "learned"
    `w . act(V [e1; e2; e1*e2; |e1-e2|] + c) + b`, which is not symmetric in the two texts.

    Input: one `(B, L, D)` or `(B, D)`; a pair as tuple or list of two, each an array or a mapping with its own mask; or
    both texts stacked, `(B, 2, L, D)` with mask `(B, 2, L)`.
    Outputs: one text `embeddings (B, E)`; a pair `similarity_score (B,)` and, unless `output_embeddings` is False,
    `embeddings_1`, `embeddings_2 (B, E)`. `output_size` is E.
    Loss of a pair: `loss` "mse" of the score against targets `(B,)`; "bce", the score being a logit (not for cosine);
    "pair_contrastive" with `margin`; "multiple_negatives", where other rows are the negatives and targets are None.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "similarity_function": "cosine",
        "output_embeddings": True,
        "loss": "mse",
        "margin": 1.0,
    }

    takes_groups = True

    @property
    def needs_labels(self) -> bool:
        """Whether the loss needs a label of each pair."""
        return self.option("loss") != "multiple_negatives"

    def _build_output_layer(self) -> None:
        config, size = self.config, self.config.output_size
        function = self.option("similarity_function")
        if function not in ("cosine", "dot", "learned"):
            raise ValueError(
                f"[TextSimilarityHead] expected similarity_function 'cosine', 'dot' or 'learned' but got {function!r}. "
                "Choose one of the three."
            )
        self.output = glorot_linear(self.projection_output_size, size, config.output_bias)
        if function == "learned":
            self.pair_dense = glorot_linear(4 * size, size)
            self.pair_activation = activation_of(config)
            self.pair_output = truncated_normal_linear(size, 1, std=config.initializer_range)

    def _build_loss_function(self) -> None:
        loss, function = self.option("loss"), self.option("similarity_function")
        if loss not in _LOSSES or (loss == "bce" and function == "cosine"):
            raise ValueError(
                f"[TextSimilarityHead] expected loss among {', '.join(_LOSSES)} (bce not with cosine, no logit) "
                f"but got {loss!r} with {function!r}. Choose another."
            )
        if loss in ("pair_contrastive", "multiple_negatives") and not self.option("output_embeddings"):
            raise ValueError(
                f"[TextSimilarityHead] expected output_embeddings=True with loss {loss!r} but got False. Switch it on."
            )

    def __call__(
        self, hidden_states: Any, attention_mask: mx.array | None = None, **kwargs: Any
    ) -> dict[str, mx.array]:
        """Return the outputs for one text, or for a pair; see the class for the forms of the input."""
        if isinstance(hidden_states, tuple | list):
            if len(hidden_states) != 2 or attention_mask is not None:
                raise ValueError(
                    f"[TextSimilarityHead] expected two inputs without a common mask but got {len(hidden_states)}. "
                    "Pass each as a mapping with hidden_states and attention_mask."
                )
            first, second = (super(TextSimilarityHead, self).__call__(side, **kwargs) for side in hidden_states)
            return self._pair(first["embeddings"], second["embeddings"])
        return super().__call__(hidden_states, attention_mask, **kwargs)

    def forward(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> dict[str, mx.array]:
        if hidden_states.ndim == 4:
            if hidden_states.shape[1] != 2:
                raise ValueError(
                    f"[TextSimilarityHead] expected pairs (B, 2, L, D) but got shape {hidden_states.shape}. "
                    "Stack two texts on axis 1."
                )
            sides = [self._embed(hidden_states[:, i], None if attention_mask is None else attention_mask[:, i])
                     for i in (0, 1)]  # fmt: skip
            return self._pair(*sides)
        return {"embeddings": self._embed(hidden_states, attention_mask)}

    def _embed(self, hidden_states: mx.array, attention_mask: mx.array | None) -> mx.array:
        return self.output(self._pooled_features(hidden_states, attention_mask)).astype(mx.float32)

    def _pair(self, first: mx.array, second: mx.array) -> dict[str, mx.array]:
        function = self.option("similarity_function")
        if function == "learned":
            both = mx.concatenate([first, second, first * second, mx.abs(first - second)], axis=-1)
            score = self.pair_output(self.pair_activation(self.pair_dense(both)))[..., 0]
        elif function == "cosine":
            score = mx.sum(losses.unit_vectors(first) * losses.unit_vectors(second), axis=-1)
        else:
            score = mx.sum(first * second, axis=-1)
        outputs = {"similarity_score": score}
        return (
            outputs | {"embeddings_1": first, "embeddings_2": second} if self.option("output_embeddings") else outputs
        )

    def compute_loss(self, predictions: Mapping[str, mx.array], targets: mx.array | None) -> mx.array:
        """Return the scalar loss of pairs for `targets (B,)`: similarities, or 1 for similar and 0 for not."""
        if "similarity_score" not in predictions:
            raise ValueError(
                f"[TextSimilarityHead] expected the outputs of pairs but got {sorted(predictions)}. "
                "Call the head with two texts, or use the contrastive head for class labels."
            )
        loss, score = self.option("loss"), predictions["similarity_score"]
        if loss == "mse":
            return losses.mse_loss(score, targets)
        if loss == "bce":
            return losses.binary_cross_entropy(score, targets)
        first, second = predictions["embeddings_1"], predictions["embeddings_2"]
        if loss == "pair_contrastive":
            return losses.pair_contrastive_loss(first, second, targets, self.option("margin"))
        return losses.multiple_negatives_ranking_loss(first, second)

    def compute_metrics(self, predictions: Mapping[str, mx.array], targets: mx.array | None) -> dict[str, float]:
        """Return the Pearson and Spearman correlation of score and target; without targets recall@k and mrr."""
        if targets is None:
            return metrics.retrieval_metrics(predictions["embeddings_1"], predictions["embeddings_2"])
        return metrics.similarity_metrics(predictions["similarity_score"], targets)
