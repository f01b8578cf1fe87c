"""Regression: one or several real values per sequence, optionally with their uncertainty.

Dimension key: B batch, L tokens, F width after the projection, T target values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import mlx.core as mx

from heads import losses, metrics
from heads.base import BaseKaggleHead


class NormalizedTargets:
    """What a head of real values has to learn targets of any size: their mean and spread, saved but not trained."""

    SAVED_BUFFERS: ClassVar[tuple[str, ...]] = ("target_mean", "target_std")

    def _build_normalization(self, targets: int) -> None:
        self._target_mean, self._target_std = mx.zeros((targets,)), mx.ones((targets,))

    def set_target_normalization(self, mean: float | list[float], std: float | list[float]) -> None:
        """Predict in units of the target: `mean` and `std` of the training targets, one value or one per target."""
        shape = self._target_mean.shape
        mean, std = (mx.broadcast_to(mx.array(value, dtype=mx.float32), shape) for value in (mean, std))
        if not mx.all(std > 0).item():
            raise ValueError(f"[set_target_normalization] expected std above 0 but got {std.tolist()}. Use std=1.")
        self._target_mean, self._target_std = mean, std

    def _normalized(self, targets: mx.array, logits: mx.array) -> mx.array:
        return (losses.align_targets(logits, targets) - self._target_mean) / self._target_std


class RegressionHead(NormalizedTargets, BaseKaggleHead):
    """`z = W f + b` in units of the normalised target, `prediction = mean + std * z`.

    Outputs: `logits (B, T)` = z, `predictions (B, T)`; with `use_uncertainty` also `log_variance`, `variance` and
    `uncertainty` (the standard deviation) `(B, T)` in units of the target.
    Loss on the normalised target: `loss_type` "mse", "mae" or "huber" (`delta`); with uncertainty the Gaussian negative
    log-likelihood `((y - z)^2 / s^2 + log s^2) / 2` instead (Nix & Weigend 1994). Targets `(B,)` or `(B, T)`.

    Options: `num_targets` (1), `use_output_scaling` (a learned scale and shift of z), and the target normalisation that
    `set_target_normalization` sets; it is saved but not trained.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "loss_type": "mse",
        "delta": 1.0,
        "num_targets": 1,
        "use_output_scaling": False,
    }
    FEATURES = frozenset({"use_uncertainty"})

    def _build_output_layer(self) -> None:
        targets = self.option("num_targets")
        self.output = self._output_layer(targets)
        if self.option("use_output_scaling"):
            self.output_scale, self.output_shift = mx.ones((targets,)), mx.zeros((targets,))
        if self.config.use_uncertainty:
            self.log_variance = self._output_layer(targets)
        self._build_normalization(targets)

    def _build_loss_function(self) -> None:
        self.loss_type = self.option("loss_type")
        if self.loss_type not in ("mse", "mae", "huber"):
            raise ValueError(
                f"[RegressionHead] expected loss_type 'mse', 'mae' or 'huber' but got {self.loss_type!r}. Choose one."
            )

    def forward(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> dict[str, mx.array]:
        features = self._pooled_features(hidden_states, attention_mask)
        logits = self.output(features).astype(mx.float32)
        if "output_scale" in self:
            logits = logits * self.output_scale + self.output_shift
        outputs = {"logits": logits, "predictions": logits * self._target_std + self._target_mean}
        if "log_variance" in self:
            # Beyond e^30 the variance would leave the range of numbers, and a row without a fit would end the training.
            log_variance = mx.clip(self.log_variance(features).astype(mx.float32), -30.0, 30.0)
            log_variance = log_variance + 2 * mx.log(self._target_std)
            outputs |= {
                "log_variance": log_variance,
                "variance": mx.exp(log_variance),
                "uncertainty": mx.exp(0.5 * log_variance),
            }
        return outputs

    def compute_loss(self, predictions: Mapping[str, mx.array], targets: mx.array) -> mx.array:
        """Return the scalar loss for `targets (B,)` (one target) or `(B, T)`."""
        logits = predictions["logits"]
        targets = self._normalized(targets, logits)
        if "log_variance" in predictions:
            log_variance = predictions["log_variance"] - 2 * mx.log(self._target_std)
            return losses.gaussian_nll_loss(logits, log_variance, targets)
        if self.loss_type == "huber":
            return losses.huber_loss(logits, targets, self.option("delta"))
        return (losses.mse_loss if self.loss_type == "mse" else losses.mae_loss)(logits, targets)

    def compute_metrics(self, predictions: Mapping[str, mx.array], targets: mx.array) -> dict[str, float]:
        """Return mse, rmse, mae, mape and r2; with uncertainty its mean and its rank correlation with the error."""
        return metrics.regression_metrics(predictions["predictions"], targets, predictions.get("uncertainty"))
