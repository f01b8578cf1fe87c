"""Task attention by name: (B, L, D) and a mask (B, L) to (B, L, D), built from the hidden size alone."""

import inspect
from collections.abc import Callable

import mlx.nn as nn

from heads.attention_core import MultiHeadAttention, MultiHeadCrossAttention
from heads.attention_gates import CBAM, ChannelGate, FNet, SpatialGate
from heads.attention_variants import (
    AnchorAttention,
    GroupQueryAttention,
    HopfieldAttention,
    MobileMQA,
    PerceiverAttention,
    WindowAttention,
    differential_attention,
)
from heads.lookup import build_by_name, find_by_name

ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
    "multi_head": MultiHeadAttention,
    "cbam": CBAM,
    "differential": differential_attention,
    "group_query": GroupQueryAttention,
    "perceiver": PerceiverAttention,
    "window": WindowAttention,
    "multi_head_cross": MultiHeadCrossAttention,
    "anchor": AnchorAttention,
    "fnet": FNet,
    "hopfield": HopfieldAttention,
    "mobile_mqa": MobileMQA,
    "channel": ChannelGate,
    "spatial": SpatialGate,
}

_UNAVAILABLE = {
    "capsule_routing": "not implemented",
    "shared_weights_cross": "it needs two modalities",
    "non_local": "made for images",
    "window_zigzag": "made for images",
    "gated": "not implemented",
}


def create_attention(name: str, dim: int, num_heads: int = 8, dropout: float = 0.0, **options) -> nn.Module:
    """Build the attention called ``name``.

    Args:
        name: A key of `ATTENTIONS`.
        dim: Hidden size D.
        num_heads: Wanted number of heads; the largest divisor of D up to it is taken. Attentions without heads
            (cbam, channel, spatial, fnet) have no such number, and no attention weights to drop.
        dropout: Rate on the attention weights.
        options: Further arguments of that attention.

    Raises:
        ValueError: for an unknown name or option.
    """
    build = find_by_name(ATTENTIONS, name, "attention_type", _UNAVAILABLE)
    if "num_heads" in inspect.signature(build).parameters:
        options = {"num_heads": num_heads, "dropout": dropout, **options}
    return build_by_name(ATTENTIONS, name, "attention_type", (dim,), options, _UNAVAILABLE)
