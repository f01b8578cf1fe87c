"""Token classification (NER, tagging): one label per token, with an optional linear-chain CRF.

Dimension key: B batch, L tokens, D hidden size, F width after the projection, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads import losses, metrics
from heads.base import BaseKaggleHead
from heads.classification import class_outputs
from heads.decoding import crf_log_likelihood, crf_viterbi
from heads.initialization import glorot_linear
from heads.recurrent import StackedRNN


class TokenClassificationHead(BaseKaggleHead):
    """`logits_t = W f_t + b` for every token.

    Outputs: `logits (B, L, C)`, `probabilities (B, L, C)`, `predictions (B, L)` int32: the argmax, or the best path of
    the CRF (0 at padding); a CRF gives no token probabilities.
    Loss: cross-entropy over the labels that are not -100, with `class_weights` and `label_smoothing`; with a CRF the
    negative log-likelihood of the labelled tokens' path (Lafferty et al. 2001), mean over sequences.

    Options: `use_crf`; `rnn_layers` > 0 puts a bidirectional LSTM of `rnn_hidden` per direction (`rnn_dropout` between
    its layers), LayerNorm, Linear, GELU and dropout between projection and output: the BiLSTM tagger.
    """

    POOLED = False
    OPTIONS: ClassVar[dict[str, Any]] = {
        "use_crf": False,
        "rnn_layers": 0,
        "rnn_hidden": 32,
        "rnn_dropout": 0.1,
        "loss": "cross_entropy",
        "focal_gamma": 2.0,
    }
    FEATURES = frozenset({"label_smoothing", "class_weights"})
    labels_are_classes = True

    def _build_output_layer(self) -> None:
        width, layers = self.projection_output_size, self.option("rnn_layers")
        if layers:
            hidden = self.option("rnn_hidden")
            self.rnn = StackedRNN(width, hidden, layers, bidirectional=True, dropout=self.option("rnn_dropout"))
            self.rnn_norm = nn.LayerNorm(2 * hidden)
            self.rnn_dense = glorot_linear(2 * hidden, width)
            self.rnn_output_dropout = nn.Dropout(self.config.dropout_prob)
        super()._build_output_layer()
        classes = self.config.output_size
        if self.option("use_crf"):
            self.transitions = mx.zeros((classes, classes))
            self.start_transitions, self.end_transitions = mx.zeros((classes,)), mx.zeros((classes,))

    def _build_loss_function(self) -> None:
        config, weights = self.config, self.config.class_weights
        if weights is not None and len(weights) != config.output_size:
            raise ValueError(
                f"[TokenClassificationHead] expected {config.output_size} class_weights but got {len(weights)}. "
                "Give one weight per label."
            )
        if self.option("loss") not in ("cross_entropy", "focal"):
            raise ValueError(
                f"[TokenClassificationHead] expected loss 'cross_entropy' or 'focal' but got {self.option('loss')!r}. "
                "Choose one of the two."
            )
        if self.option("use_crf") and (weights or config.label_smoothing or self.option("loss") == "focal"):
            raise ValueError(
                "[TokenClassificationHead] expected no class_weights, label_smoothing or focal loss with use_crf: the "
                "loss is the likelihood of the whole path. Remove them."
            )
        self._class_weights = None if weights is None else mx.array(weights)

    def forward(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> dict[str, mx.array]:
        features, mask = self._token_features(hidden_states, attention_mask)
        if "rnn" in self:
            features = self.rnn_norm(self.rnn(features, mask))
            features = self.rnn_output_dropout(nn.gelu(self.rnn_dense(features)))
        outputs = class_outputs(self.output(features))
        if not self.option("use_crf"):
            return outputs
        logits = outputs["logits"]
        mask = mx.ones(logits.shape[:2], dtype=mx.bool_) if mask is None else mask
        path = crf_viterbi(logits, mask, *self._crf())
        return {"logits": logits, "predictions": path, "attention_mask": mask}

    def _crf(self) -> tuple[mx.array, mx.array, mx.array]:
        return self.transitions, self.start_transitions, self.end_transitions

    def compute_loss(self, predictions: Mapping[str, mx.array], targets: mx.array) -> mx.array:
        """Return the scalar loss for `targets (B, L)`, -100 where a token has no label."""
        logits = predictions["logits"]
        if self.option("use_crf"):
            labelled = (targets != losses.IGNORE_INDEX) & predictions["attention_mask"]
            scores = crf_log_likelihood(logits, targets, labelled, *self._crf())
            present = mx.any(labelled, axis=1)
            return -mx.sum(scores) / mx.maximum(mx.sum(present), 1)
        weights = self._class_weights
        if self.option("loss") == "focal":
            gamma = self.option("focal_gamma")
            return losses.focal_loss(logits, targets, gamma, 1.0, weights, self.config.label_smoothing)
        return losses.cross_entropy(logits, targets, weights, self.config.label_smoothing)

    def compute_metrics(self, predictions: Mapping[str, mx.array], targets: mx.array) -> dict[str, float]:
        """Return accuracy and macro f1 over the labelled tokens."""
        return metrics.token_metrics(predictions["predictions"], targets)
