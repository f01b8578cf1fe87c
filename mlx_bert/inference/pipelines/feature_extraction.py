"""The encoder's last hidden states.

Dimensions: B batch, L tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from heads.masks import zero_padding
from mlx_bert.core import BertCore
from mlx_bert.inference.pipelines.base import Pipeline, check_texts
from mlx_bert.inference.pipelines.options import takes_options
from mlx_bert.model import METADATA, BertWithHead
from mlx_bert.tokenizer import Batch


class FeatureExtraction(Pipeline):
    """The encoder's last hidden states."""

    @takes_options
    def __call__(
        self,
        inputs: str | Sequence[str] | Iterator[str],
        *,
        return_tensors: bool = False,
        truncation: bool = True,
        max_length: int | None = None,
    ) -> Any:
        """Encode.

        Args:
            inputs: a text, or a list or iterator of texts.
            return_tensors: ``mx.array`` in place of nested lists.
            truncation: cut longer texts to ``max_length``; False refuses them.
            max_length: tokens; None for the tokenizer's bound.

        Returns:
            ``(1, L, D)`` for a text, special tokens included; a list of these for several.

        Raises:
            ValueError: something that is no text, or a text that is too long.
        """
        run = partial(self._states, tensors=return_tensors, truncation=truncation, max_length=max_length)
        return self._each(inputs, isinstance(inputs, str), run)

    def _states(self, texts: list[str], tensors: bool, **settings: Any) -> Iterator[Any]:
        core = self.model.bert if isinstance(self.model, BertWithHead) else self.model

        def forward(batch: Batch, _: Any) -> mx.array:
            states = core(*batch[:2], batch.token_type_ids, compute_pooling=False).last_hidden_state
            return zero_padding(states, batch.attention_mask)  # whatever stands there is not asked for

        for values, encoding in self._run(check_texts(texts), forward, **settings):
            states = self._tokens(values, encoding)[None]
            yield mx.array(states) if tensors else states.tolist()

    @classmethod
    def _load_model(cls, folder: Path, dtype: mx.Dtype | None) -> BertWithHead | BertCore:
        if (folder / METADATA).is_file():
            return BertWithHead.from_pretrained(folder, dtype)
        return BertCore.from_pretrained(folder, dtype)
