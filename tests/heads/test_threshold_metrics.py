"""Best thresholds against sentence-transformers' and by hand."""

import numpy as np
import pytest
from sentence_transformers.sentence_transformer.evaluation import BinaryClassificationEvaluator as Reference
from sklearn.metrics import average_precision_score

from heads.ranking_metrics import ranking_metrics
from heads.threshold_metrics import threshold_metrics


@pytest.mark.parametrize("seed", range(12))
def test_thresholds_equal_sentence_transformers(seed):
    random = np.random.default_rng(seed)
    size = int(random.integers(2, 40))
    scores = random.normal(size=size).round(int(random.integers(0, 3))).astype(np.float32)
    labels = random.integers(0, 2, size) if seed else np.zeros(size, int)
    ours = threshold_metrics(scores, labels)
    accuracy, at = Reference.find_best_acc_and_threshold(scores, labels, True)
    f1, precision, recall, f1_at = Reference.find_best_f1_and_threshold(scores, labels, True)
    wanted = {"accuracy": accuracy, "accuracy_threshold": at, "f1": f1, "f1_threshold": f1_at, "recall": recall,
              "precision": precision}  # fmt: skip
    for name, value in wanted.items():
        assert ours[name] == pytest.approx(float(value), abs=1e-6), name
    if labels.any():
        assert ours["average_precision"] == pytest.approx(average_precision_score(labels, scores))


def test_by_hand():
    found = threshold_metrics([0.9, 0.8, 0.4, 0.1], [1, 0, 1, 0])
    assert found["accuracy"] == 0.75
    assert found["accuracy_threshold"] == pytest.approx(0.85)
    assert found["f1"] == pytest.approx(0.8)
    assert (found["precision"], found["recall"]) == (pytest.approx(2 / 3), 1.0)
    assert found["f1_threshold"] == pytest.approx(0.25)
    assert found["average_precision"] == pytest.approx((1 + 2 / 3) / 2)


def test_mrr_with_a_cutoff():
    scores, relevance = [[3, 2, 1, 0], [3, 2, 1, 0]], [[0, 1, 0, 0], [0, 0, 0, 1]]
    found = ranking_metrics(scores, relevance, mrr_cutoffs=(1, 2, 10))
    assert (found["mrr@1"], found["mrr@2"], found["mrr@10"]) == (0, 0.25, 0.375)
    assert found["mrr"] == 0.375


def test_errors():
    with pytest.raises(ValueError, match=r"expected labels 0 and 1 but got \[0.5\]"):
        threshold_metrics([1.0, 2.0], [0.5, 1.0])
    with pytest.raises(ValueError, match="expected finite predictions"):
        threshold_metrics([np.nan, 2.0], [0, 1])
