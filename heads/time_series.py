"""Time series over hidden states: a recurrent (or attention) layer reads the sequence before it is pooled.

Dimension key: B batch, L steps, D hidden size, H width of the temporal encoder, C classes, F forecast steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads import losses, metrics
from heads.attention import create_attention
from heads.base import BaseKaggleHead
from heads.classification import class_labels, class_outputs
from heads.ffn import create_ffn
from heads.initialization import glorot_linear
from heads.projection import Projection
from heads.recurrent import StackedRNN
from heads.regression import NormalizedTargets


class TransformerEncoder(nn.Module):
    """Linear to the width H, then one pre-norm Transformer layer: `x + Attention(Norm(x))`, `x + MLP(Norm(x))`."""

    def __init__(self, input_size: int, hidden_size: int, dropout: float):
        super().__init__()
        self.output_size = hidden_size
        self.input = glorot_linear(input_size, hidden_size)
        self.attention_norm, self.ffn_norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.attention = create_attention("multi_head", hidden_size, dropout=dropout)
        self.ffn = create_ffn("mlp", hidden_size, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        x = self.input(x)
        x = x + self.dropout(self.attention(self.attention_norm(x), attention_mask))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


class _TemporalHead(BaseKaggleHead):
    """Task attention, temporal encoder, pooling of its states, projection: the processing order with one more step."""

    def _new_encoder(self) -> nn.Module:
        raise NotImplementedError

    def _build_pooling(self) -> None:
        if not self.config.use_pooling:
            raise ValueError(
                f"[{type(self).__name__}] expected use_pooling=True but got False. The head reads whole sequences."
            )
        super()._build_pooling()
        self.encoder = self._new_encoder()
        self.pooling = self._new_pooling(self.config.pooling_type, self.encoder.output_size)

    def _build_projection(self) -> None:
        self.projection = Projection(self.config, self.encoder.output_size)
        self.projection_output_size = self.projection.output_size

    def _encode(self, hidden_states: mx.array, mask: mx.array | None) -> mx.array:
        return self.encoder(hidden_states, mask)

    def _temporal_features(self, hidden_states: mx.array, attention_mask: mx.array | None) -> mx.array:
        hidden_states, mask = self._contextualise(hidden_states, attention_mask)
        return self.projection(self.pooling(self._encode(hidden_states, mask), mask))


class TimeSeriesClassificationHead(_TemporalHead):
    """LSTM layers over the sequence, optional self-attention, pooling, `W Dropout(LayerNorm(f)) + b`.

    Options: `num_lstm_layers` (2), `bidirectional` (True), `hidden_dim` (256, both directions together),
    `lstm_dropout` (0.2, between layers), `use_attention` (True: `LayerNorm(x + Attention(x))` with 8 heads on the
    LSTM's states). Each row is read within its own mask, backwards from its last real token.
    Outputs: `logits (B, C)`, `probabilities (B, C)`, `predictions (B,)`. Loss: cross-entropy, labels `(B,)`.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "num_lstm_layers": 2,
        "bidirectional": True,
        "hidden_dim": 256,
        "lstm_dropout": 0.2,
        "use_attention": True,
    }
    FEATURES = frozenset({"label_smoothing", "class_weights"})
    labels_are_classes = True

    def _new_encoder(self) -> nn.Module:
        hidden, both = self.option("hidden_dim"), self.option("bidirectional")
        if both and hidden % 2:
            raise ValueError(
                f"[TimeSeriesClassificationHead] expected an even hidden_dim for two directions but got {hidden}. "
                "Use an even number or bidirectional=False."
            )
        return StackedRNN(
            self.config.input_size,
            hidden // 2 if both else hidden,
            self.option("num_lstm_layers"),
            bidirectional=both,
            dropout=self.option("lstm_dropout"),
        )

    def _build_output_layer(self) -> None:
        if self.option("use_attention"):
            hidden = self.option("hidden_dim")
            self.temporal_attention = create_attention("multi_head", hidden, dropout=self.config.dropout_prob)
            self.temporal_norm = nn.LayerNorm(hidden)
        self.output_norm = nn.LayerNorm(self.projection_output_size)
        self.output_dropout = nn.Dropout(self.config.dropout_prob)
        super()._build_output_layer()

    def _build_loss_function(self) -> None:
        weights = self.config.class_weights
        self._class_weights = None if weights is None else mx.array(weights)

    def _encode(self, hidden_states: mx.array, mask: mx.array | None) -> mx.array:
        states = self.encoder(hidden_states, mask)
        if "temporal_attention" in self:
            states = self.temporal_norm(states + self.temporal_attention(states, mask))
        return states

    def forward(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> dict[str, mx.array]:
        features = self.output_norm(self._temporal_features(hidden_states, attention_mask))
        return class_outputs(self.output(self.output_dropout(features)))

    def compute_loss(self, predictions: Mapping[str, mx.array], targets: mx.array) -> mx.array:
        """Return the scalar loss for `targets (B,)` or `(B, 1)`."""
        labels, smoothing = class_labels(targets), self.config.label_smoothing
        return losses.cross_entropy(predictions["logits"], labels, self._class_weights, smoothing)

    def compute_metrics(self, predictions: Mapping[str, mx.array], targets: mx.array) -> dict[str, float]:
        """Return the metrics of the multiclass head."""
        return metrics.multiclass_metrics(predictions["logits"], class_labels(targets))


class TimeSeriesRegressionHead(NormalizedTargets, _TemporalHead):
    """A forecast of F steps from the pooled states of a temporal encoder of width D / 2.

    `z = trend + seasonal + residual`, three linear maps of the features, with `use_temporal_features`, else one linear
    map; `predictions = mean + std * z`, as `set_target_normalization` sets them for each step (0 and 1). Options:
    `temporal_encoder` "lstm", "gru" or "transformer"; `num_layers` (1); `forecast_horizon`, F;
    `temporal_regularization` (0.1).
    Outputs: `logits (B, F)` = z, `predictions (B, F)`, and their parts `trend` (with the mean), `seasonal` and
    `residual (B, F)`, which add up to them.
    Loss on the normalised targets: mean squared error plus, for F > 1, `temporal_regularization` times the mean squared
    step between the z of two steps.
    Targets `(B, F)`, or `(B,)` for F = 1.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "temporal_encoder": "lstm",
        "num_layers": 1,
        "forecast_horizon": 1,
        "use_temporal_features": True,
        "temporal_regularization": 0.1,
    }

    def _fixed_output_size(self) -> int:
        return self.option("forecast_horizon")

    def _new_encoder(self) -> nn.Module:
        kind, size = self.option("temporal_encoder"), self.config.input_size
        hidden, layers = max(1, size // 2), self.option("num_layers")
        if kind not in ("lstm", "gru", "transformer") or (kind == "transformer" and layers != 1):
            raise ValueError(
                f"[TimeSeriesRegressionHead] expected temporal_encoder 'lstm', 'gru' or 'transformer' (one layer) but "
                f"got {kind!r} with {layers} layers. Correct them."
            )
        if kind == "transformer":
            return TransformerEncoder(size, hidden, self.config.dropout_prob)
        return StackedRNN(size, hidden, layers, kind, dropout=self.config.dropout_prob)

    def _build_output_layer(self) -> None:
        horizon = self.config.output_size
        self._build_normalization(horizon)
        if not self.option("use_temporal_features"):
            super()._build_output_layer()
            return
        self.trend, self.seasonal, self.residual = (self._output_layer(horizon) for _ in range(3))

    def forward(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> dict[str, mx.array]:
        features = self._temporal_features(hidden_states, attention_mask)
        if not self.option("use_temporal_features"):
            logits = self.output(features).astype(mx.float32)
            return {"logits": logits, "predictions": logits * self._target_std + self._target_mean}
        parts = {name: getattr(self, name)(features).astype(mx.float32) for name in ("trend", "seasonal", "residual")}
        logits = parts["trend"] + parts["seasonal"] + parts["residual"]
        parts = {name: part * self._target_std for name, part in parts.items()}
        parts["trend"] = parts["trend"] + self._target_mean
        return {"logits": logits, "predictions": parts["trend"] + parts["seasonal"] + parts["residual"], **parts}

    def compute_loss(self, predictions: Mapping[str, mx.array], targets: mx.array) -> mx.array:
        """Return the scalar loss for `targets (B, F)`, or `(B,)` for one step."""
        forecast = predictions["logits"]
        smooth = losses.temporal_smoothness_loss(forecast)
        return (
            losses.mse_loss(forecast, self._normalized(targets, forecast))
            + self.option("temporal_regularization") * smooth
        )

    def compute_metrics(self, predictions: Mapping[str, mx.array], targets: mx.array) -> dict[str, float]:
        """Return mse, rmse, mae, mape, and directional_accuracy for several steps."""
        return metrics.time_series_metrics(predictions["predictions"], targets)
