"""Metrics of ranked lists, by hand; tests/inference/test_evaluators.py compares them with sentence-transformers."""

import math

import pytest

from heads.retrieval_metrics import ranked_list_metrics


def test_by_hand():
    # two right ones of three found at ranks 1 and 3; nothing found; found at rank 2
    hits = [[True, False, True, False], [False] * 4, [False, True]]
    found = ranked_list_metrics(
        hits,
        [3, 1, 1],
        {"accuracy": (1, 3), "precision": (2,), "recall": (3,), "mrr": (1, 2), "map": (3,), "ndcg": (3,)},
    )
    gain = 1 / math.log2(3)
    assert found == pytest.approx(
        {
            "accuracy@1": 1 / 3,
            "accuracy@3": 2 / 3,
            "precision@2": (1 / 2 + 0 + 1 / 2) / 3,
            "recall@3": (2 / 3 + 0 + 1) / 3,
            "mrr@1": 1 / 3,
            "mrr@2": 1.5 / 3,
            "map@3": ((1 + 2 / 3) / 3 + 0 + 1 / 2) / 3,
            "ndcg@3": (1.5 / (1.5 + gain) + 0 + gain) / 3,
        }
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], {}), r"expected at least one query"),
        (([[True]], [0], {}), r"a right document for each, but got 1 lists and the counts \[0\]"),
        (([[True]], [1], {"f1": (1,)}), r"expected metrics among accuracy, .* but got f1"),
        (([[True]], [1], {"mrr": (0,)}), r"expected cutoffs of at least 1"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        ranked_list_metrics(*arguments)
