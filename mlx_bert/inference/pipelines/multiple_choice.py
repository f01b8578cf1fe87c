"""The best of several answers to a question.

Dimensions: B batch, N choices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_bert.inference.pipelines.base import Pipeline, apply_function, check_top_k
from mlx_bert.inference.pipelines.options import takes_options
from mlx_bert.tokenizer import Batch

Question = Mapping[str, Any]


class MultipleChoice(Pipeline):
    """The best of several answers to a question, or endings of a sentence."""

    HEADS = frozenset({"multiple_choice"})

    @takes_options
    def __call__(
        self,
        inputs: str | Question | Sequence[Question] | Iterator[Question],
        choices: Sequence[str] | None = None,
        *,
        top_k: int | None = None,
        max_length: int | None = None,
    ) -> Any:
        """Score choices.

        The model reads ``question`` and choice as a pair; with ``context`` it reads that, and ``question`` and choice
        behind it with a space between (RACE, SWAG). A question may have any number of choices.

        Args:
            inputs: ``{"question": ..., "choices": [...]}`` (``"text"`` will do for ``"question"``) and perhaps
                ``"context"``, or a list or iterator of them; or a question alone, with ``choices`` behind it.
            choices: those of a single question.
            top_k: so many choices, best first; None for all.
            max_length: longer pairs are cut to so many tokens, the longer text first; None for the tokenizer's bound.

        Returns:
            ``[{"choice", "index", "score"}]``, the likeliest first; ``index`` counts the choices as they were given,
            the scores of all choices of a question add up to 1. A list of these for several questions.

        Raises:
            ValueError: a question without text or choices, or a ``top_k`` below 1.
        """
        check_top_k(top_k)
        if isinstance(inputs, str):
            inputs = {"question": inputs, "choices": choices}
        return self._each(inputs, isinstance(inputs, Mapping), partial(self._score, top_k=top_k, max_length=max_length))

    def _score(self, items: list[Question], top_k: int | None, max_length: int | None) -> list[list[dict[str, Any]]]:
        rows = [_pairs(item) for item in items]
        texts = [text for row in rows for text, _ in row]
        pairs = [pair for row in rows for _, pair in row]
        runs = iter(self._run(texts, self._choice_logits, pairs, max_length))
        results = []
        for item, row in zip(items, rows, strict=True):
            scores = apply_function(np.array([next(runs)[0] for _ in row]), "softmax")
            order = np.argsort(-scores, kind="stable")[:top_k]
            named = [{"choice": item["choices"][i], "index": int(i), "score": float(scores[i])} for i in order]
            results.append(named)
        return results

    def _choice_logits(self, batch: Batch, _: Any) -> mx.array:
        """One score for each row ``(B,)``: a row is one choice of a question, whichever."""
        one = [None if array is None else mx.expand_dims(array, 1) for array in batch]
        return self.model(*one)["logits"][:, 0]


def _pairs(item: Any) -> list[tuple[str, str]]:
    """The two texts that the model reads for each choice."""
    given = item if isinstance(item, Mapping) else {}
    question, choices, context = given.get("question", given.get("text")), given.get("choices"), given.get("context")
    fine = isinstance(question, str) and isinstance(choices, list | tuple) and len(choices) > 0
    if not fine or not all(isinstance(text, str) for text in [*choices, "" if context is None else context]):
        raise ValueError(
            "[pipeline] expected {'question': ..., 'choices': [...]} with texts, and perhaps a 'context', but got "
            f"{str(item)[:60]!r}."
        )
    if context is None:
        return [(question, choice) for choice in choices]
    return [(context, f"{question} {choice}") for choice in choices]
