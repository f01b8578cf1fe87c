"""Labels for texts, by a classifier of texts or, zero-shot, by a model of entailment.

Dimensions: N texts, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_bert.inference.pipelines.base import Pipeline, apply_function, check_texts, check_top_k
from mlx_bert.inference.pipelines.options import takes_options
from mlx_bert.tokenizer import Batch

FUNCTIONS = ("sigmoid", "softmax", "none")

Item = str | Mapping[str, str]


class TextClassification(Pipeline):
    """Labels for texts or pairs of texts."""

    HEADS = frozenset(
        {
            "binary_classification",
            "multiclass_classification",
            "multilabel_classification",
            "text_classification",
            "ordinal_regression",
            "hierarchical",
            "regression",
            "ensemble",
            "ranking",
            "time_series_classification",
            "time_series_regression",
        }
    )

    @takes_options
    def __call__(
        self,
        inputs: Item | Sequence[Item] | Iterator[Item],
        *,
        top_k: int | str | None = "",
        function_to_apply: str | None = None,
        truncation: bool = True,
        max_length: int | None = None,
    ) -> Any:
        """Classify.

        Args:
            inputs: a text, a pair as ``{"text": ..., "text_pair": ...}``, or a list or iterator of either.
            top_k: so many labels of each, best first; None for all. Not given: the best alone, without a list.
            function_to_apply: ``"sigmoid"``, ``"softmax"`` or ``"none"``. None: nothing for regression, sigmoid for
                several labels at a time or a single class, otherwise softmax; for a head that we trained, what the
                head itself gives.
            truncation: cut longer texts to ``max_length``; False refuses them.
            max_length: tokens; None for the tokenizer's bound.

        Returns:
            ``[{"label", "score"}]`` for one text; a list of dicts for several; with ``top_k`` a list of them for each.

        Raises:
            ValueError: an unknown function, a ``top_k`` below 1, inputs that are neither texts nor pairs, or a text
                that is too long.
        """
        if function_to_apply not in (None, *FUNCTIONS):
            raise ValueError(
                f"[pipeline] expected function_to_apply to be one of {FUNCTIONS} but got {function_to_apply!r}."
            )
        check_top_k(top_k)
        best_alone = top_k == ""
        settings = {"truncation": truncation, "max_length": max_length}
        run = partial(self._classify, top_k=top_k, function=function_to_apply, settings=settings)
        results = self._each(inputs, isinstance(inputs, str | Mapping), run)
        return [results] if isinstance(inputs, str) and best_alone else results

    def _classify(
        self, items: list[Item], top_k: int | str | None, function: str | None, settings: Mapping[str, Any]
    ) -> list[Any]:
        own = function is None and not self.config
        function = function or ("none" if own else self._function())
        forward = self._own_scores if own else self._logits
        scores: list[Any] = [None] * len(items)
        for wanted in (False, True):  # pairs are tokenised with another template than texts
            places = [
                n for n, item in enumerate(items) if (isinstance(item, Mapping) and "text_pair" in item) == wanted
            ]
            texts = [_text(items[place], "text") for place in places]
            pairs = [_text(items[place], "text_pair") for place in places] if wanted else None
            for place, (logits, _) in zip(places, self._run(texts, forward, pairs, **settings), strict=True):
                scores[place] = apply_function(logits, function)
        if top_k == "":
            return [self._scored(row, int(row.argmax())) for row in scores]
        return [[self._scored(row, int(best)) for best in np.argsort(-row, kind="stable")[:top_k]] for row in scores]

    def _scored(self, row: np.ndarray, index: int) -> dict[str, Any]:
        return {"label": self._label(index), "score": float(row[index])}

    def _own_scores(self, batch: Batch, _: Any) -> mx.array:
        """What a head of ours says itself, ``(B, C)``."""
        outputs = self.model(*batch[:2], token_type_ids=batch.token_type_ids)["head_outputs"]
        return head_scores(outputs, len(batch.input_ids))

    def _label(self, index: int) -> str:
        tree = getattr(self.model.head, "tree", None)
        if tree is None:
            return super()._label(index)
        leaf = tree.leaves[index]
        return (self.model.id2label or {}).get(tree.index[leaf], leaf)

    def _function(self) -> str:
        problem = self.config.get("problem_type")
        if problem == "regression":
            return "none"
        if problem == "multi_label_classification" or self.model.head.config.output_size == 1:
            return "sigmoid"
        return "softmax"


class ZeroShotClassification(Pipeline):
    """Labels that the model was never trained on, by asking a model of entailment."""

    HEADS = TextClassification.HEADS

    @takes_options
    def __call__(
        self,
        sequences: str | Sequence[str] | Iterator[str],
        candidate_labels: str | Sequence[str],
        *,
        hypothesis_template: str = "This example is {}.",
        multi_label: bool = False,
    ) -> Any:
        """Classify.

        Args:
            sequences: a text, or a list or iterator of texts. A text that is too long for a model together with its
                hypothesis is cut; the hypothesis is not.
            candidate_labels: names, or one string of names with commas between.
            hypothesis_template: what is asked of each label, ``{}`` standing for it.
            multi_label: several labels may hold: each is scored for itself, entailed against contradicted. Otherwise
                the scores of a text's labels add up to 1.

        Returns:
            ``{"sequence", "labels", "scores"}``, the likeliest label first; a list of these for several texts.

        Raises:
            ValueError: an empty text, no labels, or a template without ``{}``.
        """
        labels = candidate_labels
        if isinstance(labels, str):
            labels = [stripped for label in labels.split(",") if (stripped := label.strip())]
        if not labels or "{}" not in hypothesis_template:
            raise ValueError(
                "[pipeline] expected candidate_labels, and a hypothesis_template with {} for the label, but got "
                f"{candidate_labels!r} and {hypothesis_template!r}."
            )
        hypotheses = [hypothesis_template.replace("{}", label) for label in check_texts(labels)]
        run = partial(self._classify, labels=list(labels), hypotheses=hypotheses, multi_label=multi_label)
        return self._each(sequences, isinstance(sequences, str), run)

    def _classify(
        self, texts: list[str], labels: list[str], hypotheses: list[str], multi_label: bool
    ) -> list[dict[str, Any]]:
        if not all(check_texts(texts)):
            raise ValueError("[pipeline] expected texts but got an empty one. Leave it out.")
        names = {name.lower(): index for index, name in (self.model.id2label or {}).items()}
        entailment = next((index for name, index in names.items() if name.startswith("entail")), None)
        if entailment is None:
            entailment = -1
            warnings.warn("[pipeline] no label starts with 'entail': the last one is taken for it.", stacklevel=5)
        contradiction = -1 if entailment == 0 else 0
        premises = [text for text in texts for _ in labels]
        windows = self.tokenizer.encode_windows(premises, hypotheses * len(texts), stride=0, cut_first=True)
        encodings = [row[0] for row in windows]
        logits = np.array([row for row, _ in self._run(encodings, self._logits)]).reshape(len(texts), len(labels), -1)
        results = []
        for text, each in zip(texts, logits, strict=True):
            if multi_label or len(labels) == 1:
                scores = apply_function(each[:, [contradiction, entailment]], "softmax")[:, 1]
            else:
                scores = apply_function(each[:, entailment], "softmax")
            order = np.argsort(-scores, kind="stable")
            found = {"labels": [labels[i] for i in order], "scores": [float(scores[i]) for i in order]}
            results.append({"sequence": text, **found})
        return results


def head_scores(outputs: Mapping[str, mx.array], rows: int) -> mx.array:
    """Probabilities of the classes, or values in the targets' units, ``(B, C)``, whichever a head gives."""
    names = ("probabilities_2class", "probabilities", "scores", "value", "predictions")
    return next(outputs[name] for name in names if name in outputs).reshape(rows, -1)


def _text(item: Any, key: str) -> str:
    text = item.get(key) if isinstance(item, Mapping) else item
    if not isinstance(text, str):
        raise ValueError(
            f"[pipeline] expected a text, or a pair as {{'text': ..., 'text_pair': ...}}, but got {str(item)[:60]!r}."
        )
    return text
