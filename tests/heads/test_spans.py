"""Answer spans: decoding against enumeration, the span head's loss against torch."""

import mlx.core as mx
import numpy as np
import pytest

from heads import HeadConfig, create_head
from heads.decoding import best_spans

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(0)
START, END = RNG.normal(size=(4, 7)), RNG.normal(size=(4, 7))
ALLOWED = np.array([[1] * 7, [0, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1], [0] * 7], bool)


@pytest.mark.parametrize(("length", "top_k"), [(30, 1), (3, 1), (1, 4), (2, 50)])
def test_best_spans_equal_enumeration(length, top_k):
    found = best_spans(mx.array(START), mx.array(END), mx.array(ALLOWED), length, top_k)
    for row in range(4):
        spans = [
            (START[row, i] + END[row, j], i, j)
            for i in range(7)
            for j in range(i, min(7, i + length))
            if ALLOWED[row, i] and ALLOWED[row, j]
        ]
        expected = sorted(spans, reverse=True)[:top_k]
        assert [(i, j) for i, j, _ in found[row]] == [(i, j) for _, i, j in expected]
        np.testing.assert_allclose([score for *_, score in found[row]], [score for score, *_ in expected], atol=1e-5)


def test_spans_refuse_lengths_below_one():
    with pytest.raises(ValueError, match="max_answer_length"):
        best_spans(mx.array(START), mx.array(END), max_answer_length=0)


def outputs():
    return {"start_logits": mx.array(START, mx.float32), "end_logits": mx.array(END, mx.float32)}


def test_loss_ignores_positions_outside():
    head = create_head(HeadConfig("question_answering", 8))
    start, end = [1, 6, 9, -1], [2, 6, 12, 3]
    expected = 0
    for logits, positions in ((START, start), (END, end)):
        labels = torch.tensor([p if 0 <= p < 7 else -100 for p in positions])
        expected += torch.nn.functional.cross_entropy(torch.tensor(logits), labels, ignore_index=-100).item() / 2
    forms = [
        {"start_positions": mx.array(start), "end_positions": mx.array(end)},
        (mx.array(start), mx.array(end)),
        mx.array([start, end]).T,
    ]
    for labels in forms:
        assert head.compute_loss(outputs(), labels).item() == pytest.approx(expected, abs=1e-5)
    nothing = (mx.array([-1] * 4), mx.array([9] * 4))
    assert head.compute_loss(outputs(), nothing).item() == 0
    with pytest.raises(ValueError, match=r"labels \(B, 2\)"):
        head.compute_loss(outputs(), mx.array(start))


def test_padding_gets_the_lowest_number_and_no_answer():
    head = create_head(HeadConfig("question_answering", 8))
    mask = mx.array([[1, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
    result = head(100 * mx.random.normal((3, 4, 8)), mask)
    assert (np.array(result["start_logits"])[np.array(mask) == 0] == np.finfo(np.float32).min).all()
    spans = head.decode(result, top_k=9)
    assert [len(row) for row in spans] == [6, 3, 0]
    assert all(2 <= start <= end for start, end, _ in spans[1])
    context = mx.array([[0, 1, 1, 1]] * 3)
    assert all(start >= 1 for start, _, _ in head.decode(result, context, top_k=9)[0])


def test_metrics_of_spans():
    head = create_head(HeadConfig("question_answering", 8))
    start, end = np.full((3, 6), -5.0), np.full((3, 6), -5.0)
    for row, (i, j) in enumerate([(1, 3), (2, 2), (0, 1)]):
        start[row, i] = end[row, j] = 5.0
    result = {"start_logits": mx.array(start), "end_logits": mx.array(end)}
    labels = mx.array([[1, 3], [2, 4], [9, 12]])  # exact; one of three tokens; cut off by truncation
    metrics = head.compute_metrics(result, labels)
    assert metrics["exact_match"] == pytest.approx(0.5)
    assert metrics["f1"] == pytest.approx((1 + 0.5) / 2)


def test_output_size_is_two():
    assert create_head(HeadConfig("question_answering", 8, 5)).config.output_size == 2
