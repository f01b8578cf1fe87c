"""How alike a sentence is to others: the format of the Hub's sentence-similarity widget.

Dimensions: N sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import mlx.core as mx

from mlx_bert.inference.batching import on_device
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.pipelines.base import Pipeline, check_texts, model_in, tokenizer_of
from mlx_bert.inference.pipelines.options import takes_options
from mlx_bert.inference.similarity import cosine
from mlx_bert.model import BertWithHead
from mlx_bert.tokenizer import Tokenizer

Comparison = Mapping[str, Any]


class SentenceSimilarity(Pipeline):
    """How alike a sentence is to others.

    Args:
        encoder: makes the embeddings that are compared.
        batch_size: a batch holds as many tokens as this many texts of 128.
    """

    def __init__(self, encoder: SentenceEncoder, batch_size: int = 32) -> None:
        super().__init__(encoder.core, encoder.tokenizer, batch_size=batch_size)
        self.encoder = encoder

    @classmethod
    def _load(cls, source: str | Path, dtype: str | mx.Dtype | None, revision: str | None) -> Self:
        return cls(SentenceEncoder.from_pretrained(source, dtype, revision))

    @classmethod
    def of(cls, model: Any, tokenizer: Tokenizer | str | Path | None = None) -> Self:
        if isinstance(model, SentenceEncoder) and tokenizer is None:
            return cls(model)
        core = model_in(model)
        core = core.bert if isinstance(core, BertWithHead) else core
        return cls(SentenceEncoder(core, tokenizer_of(model, tokenizer)))

    @takes_options
    def __call__(self, inputs: Comparison | Sequence[Comparison] | Iterator[Comparison]) -> Any:
        """Compare.

        Args:
            inputs: ``{"source_sentence": ..., "sentences": [...]}``, or a list or iterator of them.

        Returns:
            The cosine with each of the sentences, a list of ``N`` floats; a list of these for several inputs.

        Raises:
            ValueError: something else.
        """
        return self._each(inputs, isinstance(inputs, Mapping), self._compare)

    def _compare(self, items: list[Comparison]) -> list[list[float]]:
        rows = [_sentences(item) for item in items]
        distinct = list(dict.fromkeys(text for row in rows for text in row))
        places = {text: place for place, text in enumerate(distinct)}
        vectors = self.encoder.encode(distinct, self.batch_size, show_progress_bar=False)

        def compare(source: str, others: list[str]) -> list[float]:
            chosen = vectors[[places[text] for text in others]]
            return cosine(mx.array(vectors[places[source]])[None], mx.array(chosen))[0].tolist()

        return [on_device(partial(compare, source, others)) if others else [] for source, *others in rows]


def _sentences(item: Any) -> list[str]:
    source = item.get("source_sentence") if isinstance(item, Mapping) else None
    others = item.get("sentences") if isinstance(item, Mapping) else None
    if not isinstance(source, str) or not isinstance(others, list | tuple):
        raise ValueError(
            f"[pipeline] expected {{'source_sentence': ..., 'sentences': [...]}} but got {str(item)[:60]!r}."
        )
    return [source, *check_texts(others)]
