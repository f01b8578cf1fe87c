"""Evaluators: called with a ``SentenceEncoder``, they say how good its embeddings are, by name.

Names and numbers are those of sentence-transformers' evaluators. ``primary_metric`` is what selects the best model in a
training. With ``name``, every metric begins with it (``"sts_spearman_cosine"``).

Dimension key: N texts, Q queries, E embedding size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from heads.metrics import similarity_metrics
from heads.ranking_metrics import ranking_metrics
from heads.retrieval_metrics import ranked_list_metrics
from mlx_bert.inference.encode import SentenceEncoder, check_texts
from mlx_bert.inference.search import nearest
from mlx_bert.inference.similarity import SIMILARITIES, check_name, similarity, similarity_pairwise

ALL_SIMILARITIES = tuple(SIMILARITIES)


class Evaluator:
    """What all evaluators share: the prefix of their metrics, and the metric that counts."""

    def __init__(self, primary_metric: str, name: str = "", batch_size: int = 32) -> None:
        self.prefix = f"{name}_" if name else ""
        self.primary_metric = self.prefix + primary_metric
        self.batch_size = batch_size

    def _named(self, metrics: Mapping[str, float]) -> dict[str, float]:
        return {self.prefix + name: value for name, value in metrics.items()}


class EmbeddingSimilarityEvaluator(Evaluator):
    """Correlation of similarities with scores: ``spearman_cosine``, ``pearson_cosine``, ``spearman_dot`` ...

    Args:
        first, second: texts; row i of one is compared with row i of the other.
        scores: the similarities wanted, in any unit.
        similarities: which to measure; the first one's Spearman correlation is the primary metric.
        name, batch_size: prefix of the metrics; as for ``encode``.

    Raises:
        ValueError: lengths that differ, or an unknown similarity.
    """

    def __init__(
        self,
        first: Sequence[str],
        second: Sequence[str],
        scores: Sequence[float],
        similarities: Sequence[str] = ALL_SIMILARITIES,
        name: str = "",
        batch_size: int = 32,
    ) -> None:
        check_lengths("EmbeddingSimilarityEvaluator", first=first, second=second, scores=scores)
        self.first, self.second = check_texts(first, "evaluate"), check_texts(second, "evaluate")
        self.scores = np.asarray(scores, dtype=np.float64)
        self.similarities = [check_name(similarity) for similarity in similarities]
        super().__init__(f"spearman_{self.similarities[0]}", name, batch_size)

    def __call__(self, encoder: SentenceEncoder) -> dict[str, float]:
        first, second = (encoder.encode(texts, self.batch_size) for texts in (self.first, self.second))
        metrics = {}
        for kind in self.similarities:
            found = similarity_metrics(np.asarray(similarity_pairwise(first, second, kind)), self.scores)
            metrics |= {f"{measure}_{kind}": value for measure, value in found.items()}
        return self._named(metrics)


class TripletEvaluator(Evaluator):
    """How often the positive is more similar than the negative: ``cosine_accuracy``, ``dot_accuracy`` ...

    Args:
        anchors, positives, negatives: as many of each. Anchors are encoded as queries, the others as documents.
        margin: by so much.
        similarities: which to measure; the first is the primary one.
        name, batch_size: prefix of the metrics; as for ``encode``.

    Raises:
        ValueError: lengths that differ, or an unknown similarity.
    """

    def __init__(
        self,
        anchors: Sequence[str],
        positives: Sequence[str],
        negatives: Sequence[str],
        margin: float = 0.0,
        similarities: Sequence[str] = ALL_SIMILARITIES,
        name: str = "",
        batch_size: int = 32,
    ) -> None:
        check_lengths("TripletEvaluator", anchors=anchors, positives=positives, negatives=negatives)
        self.anchors = check_texts(anchors, "evaluate")
        self.others = check_texts(positives, "evaluate"), check_texts(negatives, "evaluate")
        self.margin = margin
        self.similarities = [check_name(similarity) for similarity in similarities]
        super().__init__(f"{self.similarities[0]}_accuracy", name, batch_size)

    def __call__(self, encoder: SentenceEncoder) -> dict[str, float]:
        anchors = encoder.encode_query(self.anchors, self.batch_size)
        positives, negatives = (encoder.encode_document(texts, self.batch_size) for texts in self.others)
        metrics = {}
        for kind in self.similarities:
            near = np.asarray(similarity_pairwise(anchors, positives, kind))
            far = np.asarray(similarity_pairwise(anchors, negatives, kind))
            metrics[f"{kind}_accuracy"] = float((near > far + self.margin).mean())
        return self._named(metrics)


class InformationRetrievalEvaluator(Evaluator):
    """Searching a corpus: ``cosine_accuracy@k``, ``precision@k``, ``recall@k``, ``ndcg@k``, ``mrr@k``, ``map@k``.

    The primary metric is ndcg at the largest k of the first similarity.

    Args:
        queries: id -> text. Those without relevant documents are left out.
        corpus: id -> text.
        relevant: query id -> ids of its relevant documents.
        accuracy_at, precision_recall_at, mrr_at, ndcg_at, map_at: the k of each metric.
        similarities: which to measure.
        name, batch_size: prefix of the metrics; as for ``encode``.

    Raises:
        ValueError: no query with relevant documents, or a relevant document that is not in the corpus.
    """

    def __init__(
        self,
        queries: Mapping[str, str],
        corpus: Mapping[str, str],
        relevant: Mapping[str, Collection[str]],
        accuracy_at: Sequence[int] = (1, 3, 5, 10),
        precision_recall_at: Sequence[int] = (1, 3, 5, 10),
        mrr_at: Sequence[int] = (10,),
        ndcg_at: Sequence[int] = (10,),
        map_at: Sequence[int] = (100,),
        similarities: Sequence[str] = ("cosine",),
        name: str = "",
        batch_size: int = 32,
    ) -> None:
        self.query_ids = [query for query in queries if relevant.get(query)]
        if not self.query_ids:
            raise ValueError("[InformationRetrievalEvaluator] expected queries with relevant documents but got none.")
        # Documents in the order of their ids: equal scores are ranked so.
        self.corpus_ids = sorted(corpus)
        for query in self.query_ids:
            if lost := [document for document in relevant[query] if document not in corpus]:
                raise ValueError(
                    f"[InformationRetrievalEvaluator] document {lost[0]!r}, relevant for query {query!r}, is not in "
                    "the corpus. Add it, or take it out of relevant."
                )
        self.queries = check_texts([queries[query] for query in self.query_ids], "evaluate")
        self.corpus = check_texts([corpus[document] for document in self.corpus_ids], "evaluate")
        places = {document: place for place, document in enumerate(self.corpus_ids)}
        self.relevant = [{places[document] for document in relevant[query]} for query in self.query_ids]
        self.cutoffs = {
            "accuracy": accuracy_at,
            "precision": precision_recall_at,
            "recall": precision_recall_at,
            "ndcg": ndcg_at,
            "mrr": mrr_at,
            "map": map_at,
        }
        self.similarities = [check_name(similarity) for similarity in similarities]
        super().__init__(f"{self.similarities[0]}_ndcg@{max(ndcg_at)}", name, batch_size)

    def __call__(self, encoder: SentenceEncoder) -> dict[str, float]:
        queries = encoder.encode_query(self.queries, self.batch_size)
        corpus = encoder.encode_document(self.corpus, self.batch_size)
        most = max(max(cutoffs) for cutoffs in self.cutoffs.values())
        metrics = {}
        for kind in self.similarities:
            places, _ = nearest(queries, corpus, most, kind)
            hits = [np.isin(row, list(right)) for row, right in zip(places, self.relevant, strict=True)]
            found = ranked_list_metrics(hits, [len(right) for right in self.relevant], self.cutoffs)
            metrics |= {f"{kind}_{measure}": value for measure, value in found.items()}
        return self._named(metrics)


class RerankingEvaluator(Evaluator):
    """Ordering each query's own candidates: ``map``, ``mrr@k``, ``ndcg@k`` (the primary metric).

    Args:
        samples: dicts with ``query``, ``positive`` and ``negative``, the latter two a text or a list of texts; those
            without positives or negatives are left out.
        at_k: k.
        similarity_fn: of a query and a candidate.
        name, batch_size: prefix of the metrics; as for ``encode``.

    Raises:
        ValueError: no sample with a positive and a negative.
    """

    def __init__(
        self,
        samples: Sequence[Mapping[str, Any]],
        at_k: int = 10,
        similarity_fn: str = "cosine",
        name: str = "",
        batch_size: int = 32,
    ) -> None:
        def texts(value: Any) -> list[str]:
            return check_texts([value] if isinstance(value, str) else value, "evaluate")

        kept = [(row["query"], texts(row["positive"]), texts(row["negative"])) for row in samples]
        self.samples = [(query, near, far) for query, near, far in kept if near and far]
        if not self.samples:
            raise ValueError("[RerankingEvaluator] expected samples with positives and negatives but got none.")
        self.at_k = at_k
        self.similarity_fn = check_name(similarity_fn)
        super().__init__(f"ndcg@{at_k}", name, batch_size)

    def __call__(self, encoder: SentenceEncoder) -> dict[str, float]:
        queries = encoder.encode_query([query for query, _, _ in self.samples], self.batch_size)
        candidates = encoder.encode_document([t for _, near, far in self.samples for t in near + far], self.batch_size)
        sizes = [len(near) + len(far) for _, near, far in self.samples]
        real = np.arange(max(sizes)) < np.array(sizes)[:, None]
        relevance = np.arange(max(sizes)) < np.array([len(near) for _, near, _ in self.samples])[:, None]
        scores, start = np.zeros(real.shape), 0
        for number, size in enumerate(sizes):
            own = candidates[start : start + size]
            scores[number, :size] = np.asarray(similarity(queries[number : number + 1], own, self.similarity_fn))[0]
            start += size
        found = ranking_metrics(scores, relevance, real, cutoffs=(self.at_k,), mrr_cutoffs=(self.at_k,))
        return self._named({name: value for name, value in found.items() if name != "mrr"})


def check_lengths(where: str, **columns: Sequence[Any]) -> None:
    """Check that columns are of one length, and not empty.

    Raises:
        ValueError: they aren't.
    """
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(f"[{where}] expected as many of each, at least one, but got {lengths}. Correct them.")
