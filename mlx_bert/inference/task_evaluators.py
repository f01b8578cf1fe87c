"""Evaluators of cross-encoders, classifiers and taggers: called with the model, they say how good it is, by name.

Those of cross-encoders have the names and numbers of sentence-transformers' ``CrossEncoder...Evaluator``.
``primary_metric`` is the one to choose the best model by; with ``name``, every metric begins with it.

Dimension key: N texts or pairs, C classes, Q queries, M documents of a query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from heads.metrics import multiclass_metrics, similarity_metrics
from heads.ranking_metrics import ranking_metrics
from heads.tagging_metrics import entity_metrics
from heads.threshold_metrics import threshold_metrics
from mlx_bert.inference.cross_encoder import CrossEncoder
from mlx_bert.inference.encode import check_texts
from mlx_bert.inference.evaluators import Evaluator, check_lengths
from mlx_bert.inference.predict import TextPredictor

OUTSIDE = "O"
NER_STRIDE = 16  # tokens that windows of long texts share


class CrossEncoderRerankingEvaluator(Evaluator):
    """Ordering each query's documents: ``map``, ``mrr@k``, ``ndcg@k`` (the primary metric).

    With ``documents``, in the order of a first search, also ``base_map``, ``base_mrr@k`` and ``base_ndcg@k`` of that.

    Args:
        samples: dicts with ``query``, ``positive`` (a text or a list), and either ``negative`` or ``documents``.
        at_k: k.
        always_rerank_positives: score positives that ``documents`` lacks, too; otherwise they count as not found.
        name, batch_size: prefix of the metrics; as for ``predict``.

    Raises:
        ValueError: no samples, or one without these columns.
    """

    def __init__(
        self,
        samples: Sequence[Mapping[str, Any]],
        at_k: int = 10,
        always_rerank_positives: bool = True,
        name: str = "",
        batch_size: int = 32,
    ) -> None:
        check_lengths("CrossEncoderRerankingEvaluator", samples=samples)
        self.at_k = at_k
        self.queries: list[str] = []
        self.documents: list[list[str]] = []
        self.relevance: list[list[int]] = []
        self.base: list[list[int]] = []
        for number, sample in enumerate(samples):
            if not {"query", "positive"} <= set(sample) or ("negative" in sample) == ("documents" in sample):
                raise ValueError(
                    "[CrossEncoderRerankingEvaluator] expected query, positive and either negative or documents in "
                    f"sample {number} but got {', '.join(sorted(sample))}. Name the columns so."
                )
            positives, others = _texts(sample["positive"]), _texts(sample.get("negative", sample.get("documents")))
            if "documents" in sample:
                found = [int(text in positives) for text in others]
                self.base.append(found + [1] * (len(positives) - sum(found)) if any(found) else found)
                if always_rerank_positives:
                    others = positives + [text for text in others if text not in positives]
                labels = [int(text in positives) for text in others]
            else:
                labels = [1] * len(positives) + [0] * len(others)
                others = positives + others
            self.queries.append(sample["query"])
            self.documents.append(others)
            self.relevance.append(labels)
        super().__init__(f"ndcg@{at_k}", name, batch_size)

    def __call__(self, model: CrossEncoder) -> dict[str, float]:
        rows = zip(self.queries, self.documents, self.relevance, strict=True)
        pairs = [(query, text) for query, documents, labels in rows if any(labels) for text in documents]
        scores = iter(np.asarray(model.predict(pairs, self.batch_size, raw_scores=True)).tolist() if pairs else [])
        ranked = [[next(scores) for _ in labels] if any(labels) else [0.0] * len(labels) for labels in self.relevance]
        metrics = self._measure(ranked, self.relevance)
        if self.base:
            order = [list(range(len(labels), 0, -1)) for labels in self.base]
            metrics |= {f"base_{key}": value for key, value in self._measure(order, self.base).items()}
        return self._named(metrics)

    def _measure(self, scores: Sequence[Sequence[float]], labels: Sequence[Sequence[int]]) -> dict[str, float]:
        """The means over all queries; one without a relevant document counts 0."""
        names = ("map", f"mrr@{self.at_k}", f"ndcg@{self.at_k}")
        share = float(np.mean([any(row) for row in labels]))
        if not share:
            return dict.fromkeys(names, 0.0)
        shape = (len(labels), max(len(row) for row in labels))
        arrays = [np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)]
        for number, (row, target) in enumerate(zip(scores, labels, strict=True)):
            for array, values in zip(arrays, (row, target, True), strict=True):
                array[number, : len(target)] = values
        found = ranking_metrics(*arrays, cutoffs=(self.at_k,), mrr_cutoffs=(self.at_k,))
        return {key: share * found[key] for key in names}


class CrossEncoderClassificationEvaluator(Evaluator):
    """Pairs with a class each.

    With one class, ``accuracy`` and ``f1`` at their best thresholds, ``accuracy_threshold``, ``f1_threshold``,
    ``precision``, ``recall`` and ``average_precision`` (the primary metric); with several, ``accuracy``, ``f1_macro``
    (the primary metric), ``f1_micro`` and ``f1_weighted``.

    Args:
        pairs: of texts.
        labels: 0 and 1, or the number of each class.
        num_labels: of the model: which of the two.
        name, batch_size: prefix of the metrics; as for ``predict``.

    Raises:
        ValueError: lengths that differ.
    """

    def __init__(
        self,
        pairs: Sequence[Sequence[str]],
        labels: Sequence[int],
        num_labels: int = 1,
        name: str = "",
        batch_size: int = 32,
    ) -> None:
        check_lengths("CrossEncoderClassificationEvaluator", pairs=pairs, labels=labels)
        self.pairs, self.labels = [tuple(pair) for pair in pairs], np.asarray(labels)
        self.num_labels = num_labels
        super().__init__("average_precision" if num_labels == 1 else "f1_macro", name, batch_size)

    def __call__(self, model: CrossEncoder) -> dict[str, float]:
        if model.num_labels != self.num_labels:
            raise ValueError(
                f"[CrossEncoderClassificationEvaluator] expected a model with {self.num_labels} classes but got "
                f"{model.num_labels}. Set num_labels."
            )
        scores = np.asarray(model.predict(self.pairs, self.batch_size))
        found = threshold_metrics(scores, self.labels) if self.num_labels == 1 else class_metrics(scores, self.labels)
        return self._named(found)


class CrossEncoderCorrelationEvaluator(Evaluator):
    """Correlation of scores with those wanted: ``spearman`` (the primary metric) and ``pearson``.

    Args:
        pairs: of texts.
        scores: those wanted, in any unit.
        name, batch_size: prefix of the metrics; as for ``predict``.

    Raises:
        ValueError: lengths that differ.
    """

    def __init__(
        self, pairs: Sequence[Sequence[str]], scores: Sequence[float], name: str = "", batch_size: int = 32
    ) -> None:
        check_lengths("CrossEncoderCorrelationEvaluator", pairs=pairs, scores=scores)
        self.pairs, self.scores = [tuple(pair) for pair in pairs], np.asarray(scores, dtype=np.float64)
        super().__init__("spearman", name, batch_size)

    def __call__(self, model: CrossEncoder) -> dict[str, float]:
        return self._named(similarity_metrics(np.asarray(model.predict(self.pairs, self.batch_size)), self.scores))


class ClassificationEvaluator(Evaluator):
    """Texts with a class each: ``accuracy``, ``f1_macro`` (the primary metric), ``f1_micro``, ``f1_weighted``.

    With two classes also ``average_precision`` of the second.

    Args:
        texts: any number.
        labels: the name of each one's class.
        pairs: the second text of each, for models of pairs.
        name, batch_size: prefix of the metrics; as for ``predict``.

    Raises:
        ValueError: lengths that differ.
    """

    def __init__(
        self,
        texts: Sequence[str],
        labels: Sequence[str],
        pairs: Sequence[str] | None = None,
        name: str = "",
        batch_size: int = 32,
    ) -> None:
        check_lengths("ClassificationEvaluator", texts=texts, labels=labels, pairs=texts if pairs is None else pairs)
        self.texts, self.labels = check_texts(texts, "evaluate"), [str(label) for label in labels]
        self.pairs = None if pairs is None else check_texts(pairs, "evaluate")
        super().__init__("f1_macro", name, batch_size)

    def __call__(self, predictor: TextPredictor) -> dict[str, float]:
        """Measure a predictor whose model gives each text one class.

        Raises:
            ValueError: a label that the model doesn't know, or a model that gives no classes.
        """
        rows = predictor.predict(self.texts, self.pairs, self.batch_size, top_k=1 << 20)
        if "scores" not in rows[0] or "label" not in rows[0]:
            raise ValueError(
                f"[ClassificationEvaluator] expected a model of one class per text but this one gives "
                f"{', '.join(rows[0])}. Measure it with its own metrics."
            )
        names = {predictor.name(index): index for index in range(len(rows[0]["scores"]))}
        if unknown := [label for label in self.labels if label not in names]:
            raise ValueError(f"[ClassificationEvaluator] unknown label {unknown[0]!r}; known: {', '.join(names)}.")
        scores = np.zeros((len(rows), len(names)))
        for number, row in enumerate(rows):
            for label, value in row["scores"].items():
                scores[number, names[label]] = value
        labels = np.array([names[label] for label in self.labels])
        found = class_metrics(scores, labels)
        if len(names) == 2:
            found["average_precision"] = threshold_metrics(scores[:, 1], labels)["average_precision"]
        return self._named(found)


class EntityEvaluator(Evaluator):
    """Named entities: ``entity_f1`` (the primary metric), ``entity_precision``, ``entity_recall``.

    An entity counts when its type and both ends are right, as in conlleval. Long sentences are read whole, in windows.

    Args:
        words: those of each sentence.
        tags: their BIO tags.
        name, batch_size: prefix of the metrics; as for ``predict``.

    Raises:
        ValueError: lengths that differ.
    """

    def __init__(
        self, words: Sequence[Sequence[str]], tags: Sequence[Sequence[str]], name: str = "", batch_size: int = 32
    ) -> None:
        check_lengths("EntityEvaluator", words=words, tags=tags)
        for number, (row, own) in enumerate(zip(words, tags, strict=True)):
            if len(row) != len(own):
                raise ValueError(
                    f"[EntityEvaluator] expected {len(row)} tags, one for each word, in sentence {number} but got "
                    f"{len(own)}. Complete them."
                )
        kept = [(list(row), list(own)) for row, own in zip(words, tags, strict=True) if len(row)]
        self.words, self.tags = [row for row, _ in kept], [own for _, own in kept]
        super().__init__("entity_f1", name, batch_size)

    def __call__(self, predictor: TextPredictor) -> dict[str, float]:
        """Measure a predictor whose model tags words.

        Raises:
            ValueError: another model.
        """
        pipe = predictor.pipeline
        if str(predictor.model.head.head_type) != "token_classification" or pipe is None:
            raise ValueError(
                f"[EntityEvaluator] expected a model that tags words but got {predictor.model.head.head_type}."
            )
        pipe.batch_size = self.batch_size
        stride = min(NER_STRIDE, (predictor.tokenizer.max_length or 512) // 4)
        found = pipe(self.words, aggregation_strategy="first", is_split_into_words=True, stride=stride)
        return self._named(
            entity_metrics([tags_of(row, own) for row, own in zip(self.words, found, strict=True)], self.tags)
        )


def tags_of(words: Sequence[str], entities: Sequence[Mapping[str, Any]]) -> list[str]:
    """BIO tags of words, from entities whose ``start`` and ``end`` count in the words joined by spaces."""
    tags, begin = [OUTSIDE] * len(words), 0
    for number, word in enumerate(words):
        for entity in entities:
            if entity["start"] < begin + len(word) and entity["end"] > begin:
                tags[number] = f"{'B' if entity['start'] >= begin else 'I'}-{entity['entity_group']}"
                break
        begin += len(word) + 1
    return tags


def class_metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """``accuracy``, ``f1_macro`` (over the classes that occur), ``f1_micro``, ``f1_weighted``; ``(N, C)``, ``(N,)``."""
    from sklearn.metrics import f1_score

    found = multiclass_metrics(scores, labels, present_only=True)
    weighted = f1_score(labels, scores.argmax(axis=1), average="weighted", zero_division=0)
    return {name: found[name] for name in ("accuracy", "f1_macro", "f1_micro")} | {"f1_weighted": float(weighted)}


def _texts(value: Any) -> list[str]:
    return check_texts([value] if isinstance(value, str) else value, "evaluate")
