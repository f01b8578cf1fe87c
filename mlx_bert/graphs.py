"""An encoder's forward pass as one compiled graph for each shape: less work in Python, fused elementwise kernels.

MLX keeps every graph that it compiled, so only shapes that come again are compiled, and only so many of them; all
others run as they are written. On a GPU this is on unless ``MLX_BERT_COMPILE=0``; elsewhere only if
``MLX_BERT_COMPILE=1`` or :meth:`mlx_bert.core.BertCore.compile_graphs` asks for it.

Dimensions: B batch, L tokens.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_bert.encoders.base import EncoderOutput

SWITCH = "MLX_BERT_COMPILE"
MOST = 40  # graphs of an encoder, in all threads and on all streams together
REMEMBERED = 1000  # shapes that came once


def wanted() -> bool:
    """Whether graphs are compiled where nothing else is said.

    Raises:
        ValueError: ``MLX_BERT_COMPILE`` is neither 0 nor 1.
    """
    said = os.environ.get(SWITCH, "")
    if said not in ("", "0", "1"):
        raise ValueError(f"[graphs] expected {SWITCH} to be 0 or 1 but got {said!r}. Correct or unset it.")
    return said == "1" if said else mx.default_device().type == mx.DeviceType.gpu


class Graphs:
    """Runs an encoder that is not being trained.

    Args:
        encoder: of :data:`mlx_bert.encoders.ENCODERS`. Its weights, inputs of the graphs, may change afterwards.

    Attributes:
        shapes: what is compiled, each for a thread and a stream.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.shapes: set[Any] = set()
        self._once: set[Any] = set()
        self._encoder = encoder

        def arrays(*inputs: mx.array | None) -> list[mx.array]:
            output = encoder(*inputs)
            return [output.last_hidden_state, *([] if output.pooled is None else [output.pooled])]

        self._run = mx.compile(arrays, inputs=encoder.state)

    def __call__(
        self, input_ids: mx.array, attention_mask: mx.array | None, token_type_ids: mx.array | None
    ) -> EncoderOutput:
        """Encode ``(B, L)``, as the encoder itself does."""
        arrays = (input_ids, attention_mask, token_type_ids)
        if not self._compiles(arrays):
            return self._encoder(*arrays)
        states, *pooled = self._run(*arrays)
        return EncoderOutput(states, None, None, *pooled)

    def _compiles(self, arrays: tuple[mx.array | None, ...]) -> bool:
        """Whether these arrays have a graph, or may have one now: that is their second time."""
        kinds = tuple(None if array is None else (array.shape, array.dtype) for array in arrays)
        # MLX compiles for each thread and stream anew. (Equal streams have different hashes.)
        key = (threading.get_ident(), str(mx.default_stream(mx.default_device())), kinds)
        if key in self.shapes:
            return True
        if len(self.shapes) >= MOST:
            return False
        if key in self._once:
            self._once.discard(key)
            self.shapes.add(key)
            return True
        if len(self._once) >= REMEMBERED:
            self._once.clear()
        self._once.add(key)
        return False
