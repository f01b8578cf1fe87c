"""Language modelling: a score for every token of the vocabulary at every position.

Dimension key: B batch, L tokens, P selected positions, F width after the projection, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads import losses
from heads.base import BaseKaggleHead


class TextGenerationHead(BaseKaggleHead):
    """`logits_t = E f_t + b` with a free decoder `E (V, F)` or the encoder's word embeddings (tied).

    Outputs: `logits (B, L, V)`, or `(B, P, V)` for the selected `positions`.
    Loss: cross-entropy over labels that are not -100, at the same position for `objective="mlm"` (Devlin et al. 2019)
    and shifted by one for `objective="causal"`. BERT's transform before the decoder is a hidden block with
    `norm_after_activation` (dense, activation, LayerNorm).

    Options: `objective` ("mlm"), `tie_embeddings` (False). A tied head holds only the bias and is called with
    `embeddings`, the encoder's embedding layer or its weight `(V, F)`.
    """

    POOLED = False
    OPTIONS: ClassVar[dict[str, Any]] = {"objective": "mlm", "tie_embeddings": False}
    FEATURES = frozenset({"label_smoothing"})

    @property
    def needs_embeddings(self) -> bool:
        """Whether the head must be called with `embeddings`."""
        return bool(self.option("tie_embeddings"))

    def _build_output_layer(self) -> None:
        if not self.needs_embeddings:
            super()._build_output_layer()
        elif self.config.output_bias:
            self.decoder_bias = mx.zeros((self.config.output_size,))

    def _build_loss_function(self) -> None:
        if self.option("objective") not in ("mlm", "causal"):
            raise ValueError(
                f"[TextGenerationHead] expected objective 'mlm' or 'causal' but got {self.option('objective')!r}. "
                "Choose one of the two."
            )

    def forward(
        self,
        hidden_states: mx.array,
        attention_mask: mx.array | None = None,
        embeddings: nn.Embedding | mx.array | None = None,
        positions: mx.array | None = None,
    ) -> dict[str, mx.array]:
        """Return the logits.

        Args:
            hidden_states: `(B, L, D)`.
            attention_mask: `(B, L)`.
            embeddings: Word embeddings for a tied decoder: a layer with `as_linear`, or its weight `(V, F)`.
            positions: `(B, P)` positions to score; None scores all. Scoring only masked tokens saves most of the work.
        """
        if self.needs_embeddings != (embeddings is not None):
            wanted = "embeddings" if self.needs_embeddings else "no embeddings, its decoder is its own,"
            raise ValueError(
                f"[TextGenerationHead] expected {wanted} with tie_embeddings={self.needs_embeddings} but got "
                f"{'none' if embeddings is None else 'some'}. Pass the encoder's word embeddings only to a tied head."
            )
        x, mask = self._contextualise(hidden_states, attention_mask)
        if positions is not None:
            x = mx.take_along_axis(x, mx.expand_dims(positions, -1), axis=1)
            mask = None if mask is None else mx.take_along_axis(mask, positions, axis=1)
        features = self.projection(x, mask)
        if embeddings is None:
            return {"logits": self.output(features).astype(mx.float32)}
        wanted = (self.config.output_size, features.shape[-1])
        if isinstance(embeddings, mx.array) and embeddings.shape != wanted:
            raise ValueError(
                f"[TextGenerationHead] expected embeddings of shape {wanted} but "
                f"got {embeddings.shape}. Make output_size the vocabulary and the last hidden size their width."
            )
        logits = embeddings.as_linear(features) if isinstance(embeddings, nn.Module) else features @ embeddings.T
        if "decoder_bias" in self:
            logits = logits + self.decoder_bias
        return {"logits": logits.astype(mx.float32)}

    def _aligned(self, logits: mx.array, labels: mx.array) -> tuple[mx.array, mx.array]:
        if self.option("objective") == "causal":
            return logits[:, :-1], labels[:, 1:]
        return logits, labels

    def compute_loss(self, predictions: Mapping[str, mx.array], targets: mx.array) -> mx.array:
        """Return the scalar loss for `targets (B, L)` (or `(B, P)`), -100 where nothing is to predict."""
        logits, targets = self._aligned(predictions["logits"], targets)
        return losses.cross_entropy(logits, targets, label_smoothing=self.config.label_smoothing)

    def compute_metrics(self, predictions: Mapping[str, mx.array], targets: mx.array) -> dict[str, float]:
        """Return the perplexity and the accuracy over the labelled tokens."""
        logits, targets = self._aligned(predictions["logits"], targets)
        counted = targets != losses.IGNORE_INDEX
        right = mx.sum((mx.argmax(logits, axis=-1) == targets) & counted) / mx.maximum(mx.sum(counted), 1)
        perplexity = mx.exp(losses.cross_entropy(logits, targets))
        return {"perplexity": perplexity.item(), "accuracy": right.item()}
