"""Token mixing without queries and keys: gates (CBAM) and the Fourier transform (FNet).

Dimension key: B batch, L tokens, D hidden size.

Each is called as ``layer(x (B, L, D), attention_mask (B, L) = None) -> (B, L, D)``.
"""

import mlx.core as mx
import mlx.nn as nn

from heads.attention_core import masked_input
from heads.initialization import glorot_linear
from heads.masks import zero_padding
from heads.pooling import max_pool, mean_pool


class ChannelGate(nn.Module):
    """``x sigmoid(MLP(mean_s x) + MLP(max_s x))``, one gate per feature and row, pools over real tokens.

    Args:
        dim: Hidden size D.
        reduction: The MLP is D -> D / reduction -> D with ReLU and no bias.
    """

    def __init__(self, dim: int, reduction: int = 8):
        super().__init__()
        self.reduce = glorot_linear(dim, max(1, dim // reduction), bias=False)
        self.expand = glorot_linear(max(1, dim // reduction), dim, bias=False)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        states, mask = masked_input(x, attention_mask)
        hidden = nn.relu(self.reduce(mean_pool(states, mask))) + nn.relu(self.reduce(max_pool(states, mask)))
        return (states * mx.sigmoid(self.expand(hidden))[:, None]).astype(x.dtype)


class SpatialGate(nn.Module):
    """``x sigmoid(conv([mean_d x; max_d x]))``, one gate per token from its neighbourhood; padding counts as zero.

    Args:
        dim: Hidden size D.
        kernel_size: Width of the neighbourhood in tokens, odd.
    """

    def __init__(self, dim: int, kernel_size: int = 7):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"[spatial] expected an odd kernel_size but got {kernel_size}. The default is 7.")
        self.conv = nn.Conv1d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        states, _ = masked_input(x, attention_mask)
        summary = mx.stack([mx.mean(states, axis=-1), mx.max(states, axis=-1)], axis=-1)
        return (states * mx.sigmoid(self.conv(summary))).astype(x.dtype)


class CBAM(nn.Module):
    """Convolutional block attention (Woo et al. 2018) along the sequence: a channel gate, then a spatial gate.

    Args:
        dim: Hidden size D.
        reduction: Of the channel gate's MLP.
        kernel_size: Of the spatial gate, in tokens, odd.
    """

    def __init__(self, dim: int, reduction: int = 8, kernel_size: int = 7):
        super().__init__()
        self.channel = ChannelGate(dim, reduction)
        self.spatial = SpatialGate(dim, kernel_size)

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        return self.spatial(self.channel(x, attention_mask), attention_mask)


class FNet(nn.Module):
    """``Re(DFT_tokens(DFT_features(x)))``, each transform unitary (Lee-Thorp et al. 2021). No parameters.

    Padding is zero before and after. The transform runs over the padded length L, so how long a row is padded changes
    its result; what stands in the padding does not.
    """

    def __init__(self, dim: int):
        super().__init__()

    def __call__(self, x: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        states, mask = masked_input(x, attention_mask)
        mixed = mx.fft.fft2(states.astype(mx.float32), axes=(1, 2)).real
        return zero_padding((mixed / (x.shape[1] * x.shape[2]) ** 0.5).astype(x.dtype), mask)
