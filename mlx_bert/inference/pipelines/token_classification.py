"""Labels for tokens, words or groups of words, with their places in the text.

Dimensions: B batch, L tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import mlx.core as mx
import numpy as np
from tokenizers import Encoding

from heads.decoding import crf_log_likelihood
from mlx_bert.inference.entities import STRATEGIES, Entity, find_entities, merge_overlapping, tokens_of
from mlx_bert.inference.pipelines.base import Pipeline, check_texts
from mlx_bert.inference.pipelines.options import takes_options
from mlx_bert.tokenizer import Batch

Words = Sequence[str]


class TokenClassification(Pipeline):
    """Labels for tokens, words or groups of words, with their places in the text."""

    HEADS = frozenset({"token_classification"})

    def prepare(self) -> None:
        self._unknown_id = self._special_id("unk_token")

    @takes_options
    def __call__(
        self,
        inputs: str | Words | Sequence[Words] | Iterator[str] | Iterator[Words],
        *,
        aggregation_strategy: str = "none",
        ignore_labels: Sequence[str] = ("O",),
        stride: int | None = None,
        is_split_into_words: bool = False,
        delimiter: str = " ",
        max_length: int | None = None,
    ) -> Any:
        """Find entities.

        Args:
            inputs: a text, or a list or iterator of texts.
            aggregation_strategy: ``"none"``: each token. ``"simple"``: neighbours with the same label together.
                ``"first"``, ``"average"``, ``"max"``: the same by words, a word's label being its first token's, that
                of the mean scores, or its surest token's.
            ignore_labels: left out.
            stride: read long texts whole, in windows that share so many tokens; where entities of two windows
                overlap, the longer one stays, or else the surer one. None cuts long texts. Not with ``"none"``.
            is_split_into_words: each text is a list of words.
            delimiter: between such words in the text that ``start`` and ``end`` count in.
            max_length: tokens of a text, or of a window, at most; None for the tokenizer's bound.

        Returns:
            ``{"entity", "score", "index", "word", "start", "end"}`` for each token, or ``{"entity_group", "score",
            "word", "start", "end"}``; a list of lists for several texts, and for words.

        Raises:
            ValueError: an unknown strategy, a stride without a strategy or too long for the model, or no texts.
        """
        check_strategy(aggregation_strategy)
        if stride is not None and aggregation_strategy == "none":
            raise ValueError(
                "[pipeline] expected an aggregation_strategy other than 'none' with stride, because tokens of "
                "windows overlap. Choose 'simple', 'first', 'average' or 'max'."
            )
        if is_split_into_words and isinstance(inputs, list | tuple) and inputs and isinstance(inputs[0], str):
            inputs = [inputs]
        run = partial(
            self._find,
            strategy=aggregation_strategy,
            ignored=frozenset(ignore_labels),
            stride=stride,
            delimiter=delimiter if is_split_into_words else None,
            max_length=max_length,
        )
        return self._each(inputs, isinstance(inputs, str), run)

    def _find(
        self,
        texts: list[Any],
        strategy: str,
        ignored: frozenset[str],
        stride: int | None,
        delimiter: str | None,
        max_length: int | None,
    ) -> list[list[Entity]]:
        starts: list[list[int] | None] = [None] * len(texts)
        windows: list[list[Any]]
        if delimiter is not None:
            rows = [_words(words) for words in texts]
            texts = [delimiter.join(words) for words in rows]
            starts = [list(accumulate((len(w) + len(delimiter) for w in words), initial=0)) for words in rows]
            windows = self.tokenizer.encode_windows(rows, None, max_length, stride or 0)
            windows = windows if stride is not None else [row[:1] for row in windows]
        elif stride is not None:
            windows = self.tokenizer.encode_windows(check_texts(texts), None, max_length, stride)
        else:
            windows = [[text] for text in check_texts(texts)]
        flat = [window for row in windows for window in row]
        runs = iter(self._run(flat, self._scores, max_length=max_length))
        classes = self.model.head.config.output_size
        results = []
        for text, row, places in zip(texts, windows, starts, strict=True):
            entities: list[Entity] = []
            for values, encoding in (next(runs) for _ in row):
                values = self._tokens(values, encoding)
                naming = (self.tokenizer.fast, self._unknown_id, self._label)
                entities += entities_of(text, encoding, values, classes, naming, strategy, ignored, places)
            results.append(merge_overlapping(entities) if len(row) > 1 else entities)
        return results

    def _scores(self, batch: Batch, _: Any) -> mx.array:
        """Probabilities of the labels ``(B, L, C)``; of a CRF ``(B, L, C + 1)``, its best path's labels behind them."""
        outputs = self.model(*batch[:2], token_type_ids=batch.token_type_ids)["head_outputs"]
        return tag_scores(outputs, self.model.head)


def check_strategy(name: str) -> None:
    """Raise ValueError for an unknown aggregation strategy."""
    if name not in STRATEGIES:
        raise ValueError(
            f"[pipeline] expected aggregation_strategy to be one of {', '.join(STRATEGIES)} but got {name!r}."
        )


def tag_scores(outputs: Mapping[str, mx.array], head: Any) -> mx.array:
    """Probabilities of a head's labels ``(B, L, C)``; of a CRF ``(B, L, C + 1)``, its best path's labels behind."""
    if "probabilities" in outputs:
        return outputs["probabilities"]
    path, mask = outputs["predictions"], outputs["attention_mask"]

    def likelihood(logits: mx.array) -> mx.array:
        crf = head.transitions, head.start_transitions, head.end_transitions
        return mx.sum(crf_log_likelihood(logits, path, mask, *crf))

    # The derivative by an emission is 1 on the path, less the probability of the label there.
    chosen = mx.expand_dims(path, -1) == mx.arange(head.config.output_size)
    marginals = chosen - mx.grad(likelihood)(outputs["logits"])
    return mx.concatenate([marginals, mx.expand_dims(path, -1).astype(marginals.dtype)], axis=-1)


def entities_of(
    text: str,
    encoding: Encoding,
    values: np.ndarray,
    classes: int,
    naming: tuple[Any, int | None, Callable[[int], str]],
    strategy: str,
    ignored: Collection[str],
    places: list[int] | None = None,
) -> list[Entity]:
    """The entities of a text, or of a window of it, in one of ``STRATEGIES``.

    Args:
        text: all of it.
        encoding: its tokens.
        values: what :func:`tag_scores` gives them, ``(L, C)`` or ``(L, C + 1)``.
        classes: C.
        naming: the fast tokenizer, its unknown token's id, and the names of labels.
        strategy, ignored: as in :class:`TokenClassification`.
        places: where words given apart start in the text.
    """
    fast, unknown, label = naming
    path = values[:, classes].astype(int) if values.shape[1] > classes else None
    tokens = tokens_of(text, encoding, values[:, :classes], fast, unknown, path, places)
    found = find_entities(tokens, label, fast, strategy)
    return [each for each in found if each.get("entity", each.get("entity_group")) not in ignored]


def _words(words: Any) -> list[str]:
    if isinstance(words, str) or not isinstance(words, Sequence):
        raise ValueError(
            f"[pipeline] expected a list of words with is_split_into_words but got {str(words)[:60]!r}. Split it."
        )
    return list(check_texts(words))
