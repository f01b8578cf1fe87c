"""Metrics: worked examples, scikit-learn, what does not count, what has no value."""

import math

import mlx.core as mx
import numpy as np
import pytest
from sklearn import metrics as sk

from heads import metrics
from heads.config import HeadType
from heads.registry import CompetitionType

RNG = np.random.default_rng(0)


def test_binary():
    found = metrics.binary_metrics([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    assert found == pytest.approx({"accuracy": 0.75, "auc": 0.75, "f1": 2 / 3, "precision": 1, "recall": 0.5})
    assert metrics.binary_metrics([0.5] * 4, [0, 0, 1, 1])["auc"] == 0.5
    assert metrics.binary_metrics([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], threshold=0.3)["recall"] == 1
    column = metrics.binary_metrics(mx.array([[0.1], [0.4], [0.35], [0.8], [0.9]]), mx.array([0, 0, 1, 1, -100]))
    assert column == pytest.approx(found)


def test_binary_without_a_value():
    found = metrics.binary_metrics([0.2, 0.3], [0, 0])
    assert math.isnan(found["auc"])
    assert found["f1"] == found["precision"] == found["recall"] == 0


def test_multiclass_is_that_of_sklearn():
    scores, labels = RNG.normal(size=(60, 5)), RNG.integers(0, 5, 60)
    labels[:6] = -100
    kept, y = scores[6:], labels[6:]
    found = metrics.multiclass_metrics(mx.array(scores).astype(mx.float32), mx.array(labels))
    p = kept.argmax(1)
    assert found == pytest.approx(
        {
            "accuracy": sk.accuracy_score(y, p),
            "f1_macro": sk.f1_score(y, p, average="macro"),
            "f1_micro": sk.f1_score(y, p, average="micro"),
            "precision_macro": sk.precision_score(y, p, average="macro"),
            "recall_macro": sk.recall_score(y, p, average="macro"),
            "top3_accuracy": sk.top_k_accuracy_score(y, kept, k=3),
        }
    )


def test_multiclass_macro_means():
    scores = np.eye(4)[[0, 1, 1]]
    assert metrics.multiclass_metrics(scores, [0, 1, 1])["f1_macro"] == 0.5  # over all four classes
    assert metrics.multiclass_metrics(scores, [0, 1, 1], present_only=True)["f1_macro"] == 1
    # Present in the predictions alone counts too: classes 0 (F1 2/3), 1 (0) and 2 (1).
    found = metrics.multiclass_metrics(np.eye(3)[[0, 1, 2]], [0, 0, 2], present_only=True)
    assert found["f1_macro"] == pytest.approx((2 / 3 + 0 + 1) / 3)


def test_top3():
    assert "top3_accuracy" not in metrics.multiclass_metrics(np.eye(2), [0, 1])
    assert metrics.multiclass_metrics(np.eye(3), [1, 2, 0])["top3_accuracy"] == 1
    scores = np.array([[4.0, 3, 2, 1], [4, 3, 2, 1]])
    assert metrics.multiclass_metrics(scores, [2, 3])["top3_accuracy"] == 0.5


def test_multilabel_is_that_of_sklearn():
    p, y = RNG.integers(0, 2, (30, 4)), RNG.integers(0, 2, (30, 4))
    expected = {
        "subset_accuracy": sk.accuracy_score(y, p),
        "hamming_loss": sk.hamming_loss(y, p),
        "f1_macro": sk.f1_score(y, p, average="macro"),
        "f1_micro": sk.f1_score(y, p, average="micro"),
    }
    assert metrics.multilabel_metrics(mx.array(p), y) == pytest.approx(expected)
    assert metrics.multilabel_metrics(p.astype(bool), y) == pytest.approx(expected)


def test_multilabel_leaves_single_places_out():
    found = metrics.multilabel_metrics([[1, 1], [0, 1]], [[1, -100], [1, 1]])
    assert found == pytest.approx(
        {"subset_accuracy": 0.5, "hamming_loss": 1 / 3, "f1_macro": (2 / 3 + 1) / 2, "f1_micro": 2 * 2 / 5}
    )


def test_regression():
    found = metrics.regression_metrics(mx.array([[1.0], [2.0], [5.0]]), mx.array([2.0, 0.0, 4.0]))
    expected = {"mse": 2, "rmse": math.sqrt(2), "mae": 4 / 3, "r2": 1 - 6 / 8, "mape": (0.5 + 0.25) / 2}
    assert found == pytest.approx(expected)


def test_regression_without_a_value():
    one = metrics.regression_metrics([1.0], [0.0])
    assert math.isnan(one["r2"])
    assert math.isnan(one["mape"])
    assert not math.isfinite(metrics.regression_metrics([1.0, 2.0], [3.0, 3.0])["r2"])


def test_regression_uncertainty():
    found = metrics.regression_metrics([1.0, 2.0, 5.0], [1.0, 1.0, 3.0], uncertainty=mx.array([0.1, 0.4, 0.7]))
    assert found["avg_uncertainty"] == pytest.approx(0.4)
    assert found["uncertainty_correlation"] == pytest.approx(1)
    constant = metrics.regression_metrics([1.0, 2.0], [1.0, 1.0], uncertainty=[0.5, 0.5])
    assert math.isnan(constant["uncertainty_correlation"])


def test_time_series():
    found = metrics.time_series_metrics([[1.0, 2, 1], [0, 1, 3]], [[1.0, 3, 4], [1, 0, 2]])
    assert found["directional_accuracy"] == 0.5
    assert set(found) == {"mse", "rmse", "mae", "mape", "directional_accuracy"}
    assert "directional_accuracy" not in metrics.time_series_metrics([[1.0], [2]], [1.0, 2])


def test_ordinal():
    p, y = RNG.integers(0, 5, 40), RNG.integers(0, 5, 40)
    found = metrics.ordinal_metrics(mx.array(p), np.concatenate([y[:39], [-100]]), num_classes=5)
    p, y = p[:39], y[:39]
    assert found["qwk"] == pytest.approx(sk.cohen_kappa_score(y, p, weights="quadratic"))
    assert found["mae"] == pytest.approx(np.abs(p - y).mean())
    assert found["ordinal_accuracy"] == pytest.approx((np.abs(p - y) <= 1).mean())
    # Kendall's tau-b from its definition.
    pairs = [(np.sign(p[i] - p[j]), np.sign(y[i] - y[j])) for i in range(39) for j in range(i)]
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    assert found["kendall_tau"] == pytest.approx((a * b).sum() / math.sqrt((a != 0).sum() * (b != 0).sum()))


def test_ordinal_skipped_classes_keep_their_distance():
    # Class 1 never occurs; 0 and 3 are still three apart.
    found = metrics.ordinal_metrics([0, 3, 2], [0, 0, 2])
    weights = (np.arange(4)[:, None] - np.arange(4)) ** 2
    table = np.zeros((4, 4))
    for p, y in ((0, 0), (3, 0), (2, 2)):
        table[y, p] += 1 / 3
    expected = np.outer(table.sum(1), table.sum(0))
    assert found["qwk"] == pytest.approx(1 - (weights * table).sum() / (weights * expected).sum())
    assert math.isnan(metrics.ordinal_metrics([1, 1], [1, 1])["qwk"])


def test_ranking_worked_example():
    found = metrics.ranking_metrics([1.0, 2, 3], [2, 0, 1])
    assert found == pytest.approx({"ndcg@5": 0.688529, "ndcg@10": 0.688529, "map": (1 + 2 / 3) / 2, "mrr": 1}, abs=1e-5)


def test_ranking_by_definition():
    scores, relevance = RNG.normal(size=(6, 12)), RNG.integers(0, 4, (6, 12))
    found = metrics.ranking_metrics(mx.array(scores), mx.array(relevance))
    values = {"ndcg@5": [], "map": [], "mrr": []}
    for s, y in zip(np.array(mx.array(scores)), relevance, strict=True):
        ordered, discount = y[np.argsort(-s)], 1 / np.log2(np.arange(12) + 2)
        ideal = ((2 ** np.sort(y)[::-1] - 1) * discount)[:5].sum()
        values["ndcg@5"].append(((2**ordered - 1) * discount)[:5].sum() / ideal)
        hits = np.flatnonzero(ordered > 0)
        values["map"].append(np.mean([(k + 1) / (rank + 1) for k, rank in enumerate(hits)]))
        values["mrr"].append(1 / (hits[0] + 1))
    for name, expected in values.items():
        assert found[name] == pytest.approx(np.mean(expected)), name


def test_ranking_masks_groups_and_empty_lists():
    one = metrics.ranking_metrics([1.0, 2, 3], [2, 0, 1])
    padded = metrics.ranking_metrics(
        [[1.0, np.nan, 2, 3], [1, 2, 3, 4], [0, 0, 0, 0]],
        [[2, -5, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]],
        [[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]],
    )
    assert padded == pytest.approx(one)
    grouped = metrics.ranking_metrics([1.0, 5, 2, 3, 9], [2, 1, 0, 1, 0], group_ids=[7, 3, 7, 7, 3])
    assert grouped["mrr"] == pytest.approx((1 + 0.5) / 2)
    assert all(math.isnan(x) for x in metrics.ranking_metrics([1.0, 2], [0, 0]).values())
    assert metrics.ranking_metrics([1.0], [2])["ndcg@5"] == 1
    # Tied with the only relevant item: the worst place.
    assert metrics.ranking_metrics([1.0, 1, 1], [0, 1, 0])["mrr"] == pytest.approx(1 / 3)


def test_retrieval():
    scores = [[0.9, 0.1, 0.5], [0.8, 0.7, 0.1], [0.3, 0.2, 0.1]]
    assert [metrics.recall_at_k(scores, k=k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert metrics.recall_at_k(np.ones((3, 3))) == 0
    assert metrics.recall_at_k(scores, [[0, 0, 1], [0, 0, 0], [1, 0, 1]]) == 0.5
    assert math.isnan(metrics.recall_at_k(scores, np.zeros((3, 3))))
    queries = RNG.normal(size=(8, 4))
    found = metrics.retrieval_metrics(queries, 3 * queries, cutoffs=(1, 5, 100))
    assert found == pytest.approx({"recall@1": 1, "recall@5": 1, "mrr": 1})
    swapped = metrics.retrieval_metrics(queries, queries[::-1], np.eye(8)[::-1])
    assert swapped["recall@1"] == 1


def test_similarity():
    scores, targets = [0.1, 0.5, 0.4, 0.9], [1.0, 2, 3, 5]
    found = metrics.similarity_metrics(scores, targets)
    assert found["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert found["pearson"] == pytest.approx(np.corrcoef(scores, targets)[0, 1])
    assert math.isnan(metrics.similarity_metrics([1.0, 1], [1, 2])["spearman"])


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O B-PER I-PER O B-LOC", [("PER", 1, 3), ("LOC", 4, 5)]),
        ("B-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),
        ("I-PER I-LOC I-LOC O I-PER", [("PER", 0, 1), ("LOC", 1, 3), ("PER", 4, 5)]),
        ("B-PER I-LOC", [("PER", 0, 1), ("LOC", 1, 2)]),
        ("PER PER O", [("PER", 0, 2)]),
        ("B-a-b I-a-b", [("a-b", 0, 2)]),
        ("O O", []),
    ],
)
def test_bio_entities(tags, expected):
    assert metrics.bio_entities(tags.split()) == expected


def test_entities():
    found = metrics.entity_metrics(
        [["B-A", "I-A", "O", "B-B"], ["O", "B-A"]], [["B-A", "I-A", "O", "B-A"], ["B-A", "B-A"]]
    )
    assert found == pytest.approx({"entity_precision": 2 / 3, "entity_recall": 2 / 4, "entity_f1": 4 / 7})
    none = metrics.entity_metrics([["O"]], [["B-A"]])
    assert math.isnan(none["entity_precision"])
    assert none["entity_f1"] == none["entity_recall"] == 0


def test_tokens():
    predictions, labels = mx.array([[0, 1, 2, 0], [0, 0, 1, 2]]), mx.array([[0, 1, 2, -100], [0, 1, 1, -100]])
    found = metrics.token_metrics(predictions, labels, ["O", "B-A", "I-A"])
    y, p = [0, 1, 2, 0, 1, 1], [0, 1, 2, 0, 0, 1]
    assert found["accuracy"] == pytest.approx(5 / 6)
    assert found["f1_macro"] == pytest.approx(sk.f1_score(y, p, average="macro"))
    # Right: A at 0..; wrong: the second sentence has two labelled entities and one found.
    assert found["entity_recall"] == pytest.approx(2 / 3)
    assert found["entity_precision"] == 1
    assert "entity_f1" not in metrics.token_metrics(predictions, labels)


def test_spans():
    found = metrics.span_metrics(
        mx.array([[1, 3], [5, 5], [0, 1], [4, 2]]), mx.array([[2, 4], [5, 5], [-1, -1], [4, 5]])
    )
    assert found == pytest.approx({"exact_match": 1 / 3, "f1": (2 / 3 + 1 + 0) / 3})


def test_every_competition_has_its_metrics():
    assert set(metrics.METRIC_SETS) == {kind.value for kind in CompetitionType}
    assert metrics.METRIC_SETS[HeadType.BINARY_CLASSIFICATION] is metrics.binary_metrics
    keys = {
        "binary_classification": {"accuracy", "auc", "f1", "precision", "recall"},
        "regression": {"mae", "mse", "rmse", "r2", "mape"},
        "ranking": {"map", "ndcg@10", "ndcg@5", "mrr"},
        "time_series": {"mae", "mse", "rmse", "mape"},
    }
    for name, expected in keys.items():
        assert set(metrics.METRIC_SETS[name]([0.1, 0.8], [0, 1])) == expected


def test_half_precision_and_plain_lists():
    for dtype in (mx.float16, mx.bfloat16):
        found = metrics.regression_metrics(mx.array([1.0, 2.0]).astype(dtype), [1, 3])
        assert found["mse"] == 0.5
        assert all(type(value) is float for value in found.values())


@pytest.mark.parametrize(
    "call",
    [
        lambda bad: metrics.binary_metrics([bad, 0.2], [0, 1]),
        lambda bad: metrics.multiclass_metrics([[bad, 0.2], [0.1, 0.3]], [0, 1]),
        lambda bad: metrics.regression_metrics([bad, 0.2], [0, 1]),
        lambda bad: metrics.time_series_metrics([bad, 0.2], [0, 1]),
        lambda bad: metrics.ranking_metrics([bad, 0.2], [0, 1]),
        lambda bad: metrics.recall_at_k([[bad, 0.2], [0.1, 0.3]]),
        lambda bad: metrics.similarity_metrics([bad, 0.2], [0, 1]),
    ],
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_model_has_no_metrics(call, bad):
    with pytest.raises(ValueError, match="expected finite predictions but got NaN or infinity"):
        call(bad)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.binary_metrics([0.1], [-100]), r"\[binary_metrics\] expected at least one labelled sample"),
        (lambda: metrics.binary_metrics([0.1], [2]), r"\[binary_metrics\] expected labels 0 and 1 but got \[2\]"),
        (lambda: metrics.multiclass_metrics(np.eye(2), [0, 2]), r"expected labels from 0 to 1 but got \[0, 2\]"),
        (lambda: metrics.multiclass_metrics(np.eye(2), [1.0, 0.5]), r"\[multiclass_metrics\] .* but got 0\.5"),
        (lambda: metrics.ordinal_metrics([1, 1], [1.0, 0.5]), r"\[ordinal_metrics\] .* whole numbers, .* but got 0\.5"),
        (
            lambda: metrics.multiclass_metrics([0.1, 0.2], [0, 1]),
            r"expected scores \(N, C\) for 2 labels but got \(2,\)",
        ),
        (lambda: metrics.multilabel_metrics([[0.3]], [[1]]), r"expected predictions 0 and 1 but got scores"),
        (lambda: metrics.multilabel_metrics([1], [1]), r"expected predictions and labels \(N, C\) but got \(1,\)"),
        (
            lambda: metrics.regression_metrics([[1, 2]], [1, 2, 3]),
            r"expected .* of one shape but got \(1, 2\) and \(3,\)",
        ),
        (
            lambda: metrics.ordinal_metrics([5], [1], 5),
            r"\[ordinal_metrics\] expected classes from 0 below 5 but got 5",
        ),
        (lambda: metrics.ranking_metrics([1.0], [-1]), r"\[ranking_metrics\] expected relevance of at least 0"),
        (
            lambda: metrics.ranking_metrics([1.0], [1, 0]),
            r"\[ranking_metrics\] expected scores, .* but got \(1,\), \(2,\)",
        ),
        (lambda: metrics.recall_at_k([[1.0]], k=0), r"\[recall_at_k\] expected k of at least 1 .* but got 0"),
        (lambda: metrics.token_metrics([1], [1]), r"\[token_metrics\] expected predictions and labels \(B, L\)"),
        (lambda: metrics.token_metrics([[1]], [[-100]]), r"\[token_metrics\] expected at least one labelled sample"),
        (lambda: metrics.entity_metrics([["O"]], [["O", "O"]]), r"\[entity_metrics\] expected as many predicted tags"),
        (lambda: metrics.span_metrics([1], [1]), r"\[span_metrics\] expected predictions and labels \(B, 2\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
