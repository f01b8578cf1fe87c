"""Normalizations over the feature axis, by name, for (B, D) and (B, L, D).

Dimension key: B batch, L tokens, D hidden size.

Each is called as ``norm(x, attention_mask=None)``. The mask matters only to those whose statistics mix tokens:
batch_norm, adaptive_band_rms, band_logit_norm (while training) and global_response_norm; they leave padding out of
their statistics. Statistics run in float32; the result has the dtype of the input.
"""

from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads.lookup import build_by_name
from heads.masks import as_boolean_mask, zero_padding


def _rms(x: mx.array, eps: float) -> mx.array:
    return mx.sqrt(mx.mean(mx.square(x), axis=-1, keepdims=True) + eps)


def _centre(x: mx.array) -> mx.array:
    return x - mx.mean(x, axis=-1, keepdims=True)


def _squared_norm(x: mx.array) -> mx.array:
    return mx.sum(mx.square(x), axis=-1, keepdims=True)


def _token_mask(x: mx.array, attention_mask: mx.array | None) -> mx.array | None:
    """The boolean mask of token states; vectors (B, D) have no padding."""
    return as_boolean_mask(attention_mask, x.shape[:2]) if x.ndim == 3 else None


class LayerNorm(nn.LayerNorm):
    """``(x - mean) / sqrt(var + eps) weight + bias`` with the biased variance."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__(dim, eps=eps)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        return super().__call__(x).astype(x.dtype)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) weight`` (Zhang & Sennrich 2019).

    Args:
        dim: Hidden size D.
        eps: Added to the mean square.
        use_scale: Whether there is a weight.
    """

    def __init__(self, dim: int, eps: float = 1e-6, use_scale: bool = True):
        super().__init__()
        self.eps = eps
        if use_scale:
            self.weight = mx.ones((dim,))

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        return mx.fast.rms_norm(x, self.get("weight"), self.eps).astype(x.dtype)


class BatchNorm(nn.Module):
    """Per-feature normalization over the batch and the real tokens; running statistics in eval mode.

    ``running_mean`` and ``running_var`` (unbiased, as in torch) are buffers: saved with the head, never trained. They
    are private because unfreezing a parent module would make any public array trainable.

    Args:
        dim: Hidden size D.
        eps: Added to the variance.
        momentum: Weight of the newest batch in the running statistics.
        affine: Whether there are a weight and a bias.
    """

    SAVED_BUFFERS: ClassVar[tuple[str, ...]] = ("running_mean", "running_var")

    def __init__(self, dim: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True):
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        if affine:
            self.weight = mx.ones((dim,))
            self.bias = mx.zeros((dim,))
        self._running_mean = mx.zeros((dim,))
        self._running_var = mx.ones((dim,))

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        states = x.astype(mx.float32)
        if self.training:
            mean, var = self._batch_statistics(states, _token_mask(x, attention_mask))
        else:
            mean, var = self._running_mean, self._running_var
        normed = (states - mean) * mx.rsqrt(var + self.eps)
        if "weight" in self:
            normed = normed * self.weight + self.bias
        return normed.astype(x.dtype)

    def _batch_statistics(self, x: mx.array, mask: mx.array | None) -> tuple[mx.array, mx.array]:
        axes = tuple(range(x.ndim - 1))
        real = mx.ones(x.shape[:-1], dtype=mx.bool_) if mask is None else mask
        count = mx.sum(real).astype(mx.float32)
        mean = mx.sum(zero_padding(x, real), axis=axes) / mx.maximum(count, 1)
        var = mx.sum(zero_padding(mx.square(x - mean), real), axis=axes) / mx.maximum(count, 1)

        # A batch of padding alone leaves the running statistics as they are; one sample has no unbiased variance.
        def update(running: mx.array, value: mx.array, known: mx.array) -> mx.array:
            new = (1 - self.momentum) * running + self.momentum * mx.stop_gradient(value)
            return mx.where(known, new, running)

        self._running_mean = update(self._running_mean, mean, count > 0)
        self._running_var = update(self._running_var, var * count / mx.maximum(count - 1, 1), count > 1)
        return mean, var


class ZeroCenteredRMSNorm(nn.Module):
    """``c = x - mean(x)``, ``c / sqrt(mean(c^2) + eps) weight``: layer norm without a bias."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = mx.ones((dim,))

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        return mx.fast.layer_norm(x, self.weight, None, self.eps).astype(x.dtype)


class BandRMS(nn.Module):
    """RMS norm times one learned scalar ``s = (1 - a) + a sigmoid(5 b)``: an output RMS between 1 - a and 1.

    Args:
        dim: Hidden size D.
        max_band_width: ``a``, in (0, 1).
        eps: Added to the mean square.
        zero_centered: Subtract the mean over the features first.
        regularization: Strength of the L2 penalty on ``b``, see `regularization_loss`.
    """

    def __init__(
        self,
        dim: int,
        max_band_width: float = 0.1,
        eps: float = 1e-6,
        zero_centered: bool = False,
        regularization: float = 1e-5,
    ):
        super().__init__()
        self.max_band_width = _check_band(max_band_width)
        self.eps = eps
        self.zero_centered = zero_centered
        self.regularization = regularization
        self.band = mx.zeros((1,))

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        states = x.astype(mx.float32)
        if self.zero_centered:
            states = _centre(states)
        scale = (1 - self.max_band_width) + self.max_band_width * mx.sigmoid(5 * self.band.astype(mx.float32))
        return (scale * states / _rms(states, self.eps)).astype(x.dtype)

    def regularization_loss(self) -> mx.array:
        """Scalar penalty ``regularization b^2`` to add to the loss."""
        return self.regularization * mx.sum(mx.square(self.band))


class ZeroCenteredBandRMS(BandRMS):
    """`BandRMS` of the input minus its mean."""

    def __init__(self, dim: int, max_band_width: float = 0.1, eps: float = 1e-6, regularization: float = 1e-5):
        super().__init__(dim, max_band_width, eps, zero_centered=True, regularization=regularization)


class AdaptiveBandRMS(nn.Module):
    """RMS norm times a scale per row and feature that depends on the row's mean RMS r.

    ``z = W log r + b``, ``s = (1 - a) + a sigmoid(5 z)``; r is the mean over the row's real tokens.

    Args:
        dim: Hidden size D.
        max_band_width: ``a``, in (0, 1).
        eps: Added to the mean square.
    """

    def __init__(self, dim: int, max_band_width: float = 0.1, eps: float = 1e-6):
        super().__init__()
        self.max_band_width = _check_band(max_band_width)
        self.eps = eps
        self.band = nn.Linear(1, dim)
        self.band.weight = mx.zeros((dim, 1))
        self.band.bias = mx.zeros((dim,))

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        states = x.astype(mx.float32)
        rms = _rms(states, self.eps)
        level = rms
        if x.ndim == 3:
            mask = _token_mask(x, attention_mask)
            count = x.shape[1] if mask is None else mx.maximum(mx.sum(mask, axis=1)[:, None, None], 1)
            level = mx.sum(zero_padding(rms, mask), axis=1, keepdims=True) / count
        band = self.band(mx.log(mx.maximum(level, self.eps)))
        scale = (1 - self.max_band_width) + self.max_band_width * mx.sigmoid(5 * band)
        return (scale * states / rms).astype(x.dtype)


class LogitNorm(nn.Module):
    """``x / (temperature |x|)`` (Wei et al. 2022): the output has norm 1 / temperature. No parameters."""

    def __init__(self, dim: int, temperature: float = 0.04, eps: float = 1e-7):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"[LogitNorm] expected a positive temperature but got {temperature}. The default is 0.04.")
        self.temperature = temperature
        self.eps = eps

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        states = x.astype(mx.float32)
        return (states / (self.temperature * mx.sqrt(mx.maximum(_squared_norm(states), self.eps)))).astype(x.dtype)


class BandLogitNorm(nn.Module):
    """Unit vectors times a length between 1 - a and 1 that grows with the input's length.

    ``s = (1 - a) + a (tanh(4 z) + 1) / 2``, z = ``|x|`` standardised by `BatchNorm` statistics (a layer norm over a
    single number, as in the source of this idea, is always 0 and makes s constant).

    Args:
        dim: Hidden size D.
        max_band_width: ``a``, in (0, 1).
        eps: Lower bound of the squared norm.
    """

    def __init__(self, dim: int, max_band_width: float = 0.01, eps: float = 1e-6):
        super().__init__()
        self.max_band_width = _check_band(max_band_width)
        self.eps = eps
        self.length_norm = BatchNorm(1)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        states = x.astype(mx.float32)
        length = mx.sqrt(mx.maximum(_squared_norm(states), self.eps))
        position = (mx.tanh(4 * self.length_norm(length, attention_mask)) + 1) / 2
        scale = (1 - self.max_band_width) + self.max_band_width * position
        return (scale * states / length).astype(x.dtype)


class GlobalResponseNorm(nn.Module):
    """``x + weight (x n) + bias``, ``n_d = N_d / (mean_d N + eps)``, ``N_d = sqrt(sum_s x^2 + eps)``.

    From ConvNeXt V2 (Woo et al. 2023). N runs over the real tokens of a row; for vectors (B, D) it is ``|x|``.
    """

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = mx.ones((dim,))
        self.bias = mx.zeros((dim,))

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        states = x.astype(mx.float32)
        squares = mx.square(states)
        if x.ndim == 3:
            squares = mx.sum(zero_padding(squares, _token_mask(x, attention_mask)), axis=1, keepdims=True)
        response = mx.sqrt(squares + self.eps)
        response = response / (mx.mean(response, axis=-1, keepdims=True) + self.eps)
        return (states + self.weight * (states * response) + self.bias).astype(x.dtype)


class MaxLogitNorm(nn.Module):
    """``x / sqrt(sum x^2 + eps)``: unit vectors. No parameters."""

    def __init__(self, dim: int, eps: float = 1e-7):
        super().__init__()
        self.eps = eps

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        states = x.astype(mx.float32)
        return (states * mx.rsqrt(_squared_norm(states) + self.eps)).astype(x.dtype)


class DynamicTanh(nn.Module):
    """``weight tanh(a x) + bias`` with a trainable scalar a (Zhu et al. 2025)."""

    def __init__(self, dim: int, alpha: float = 0.5):
        super().__init__()
        self.alpha = mx.array([float(alpha)])
        self.weight = mx.ones((dim,))
        self.bias = mx.zeros((dim,))

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        return (self.weight * mx.tanh(self.alpha * x.astype(mx.float32)) + self.bias).astype(x.dtype)


class NoNorm(nn.Module):
    """Returns its input."""

    def __init__(self, dim: int):
        super().__init__()

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        return x


def _check_band(max_band_width: float) -> float:
    if not 0 < max_band_width < 1:
        raise ValueError(
            f"[max_band_width] expected a number between 0 and 1 but got {max_band_width}. The default is 0.1."
        )
    return max_band_width


NORMALIZATIONS: dict[str, type[nn.Module]] = {
    "layer_norm": LayerNorm,
    "rms_norm": RMSNorm,
    "batch_norm": BatchNorm,
    "zero_centered_rms_norm": ZeroCenteredRMSNorm,
    "band_rms": BandRMS,
    "zero_centered_band_rms_norm": ZeroCenteredBandRMS,
    "adaptive_band_rms": AdaptiveBandRMS,
    "logit_norm": LogitNorm,
    "band_logit_norm": BandLogitNorm,
    "global_response_norm": GlobalResponseNorm,
    "max_logit_norm": MaxLogitNorm,
    "dynamic_tanh": DynamicTanh,
    "none": NoNorm,
}

_REDUCES_FEATURES = "it reduces the feature axis, so it cannot stand inside a head"
_UNAVAILABLE = dict.fromkeys(("decoupled_max_logit", "dml_plus_focal", "dml_plus_center"), _REDUCES_FEATURES)


def create_normalization(name: str, dim: int, **options) -> nn.Module:
    """Build the normalization called ``name`` for hidden size ``dim``: (..., D) -> (..., D).

    Raises:
        ValueError: for an unknown name or option.
    """
    return build_by_name(NORMALIZATIONS, name, "normalization_type", (dim,), options, _UNAVAILABLE)
