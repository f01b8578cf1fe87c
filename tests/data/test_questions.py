"""The measure of SQuAD, and windows of questions."""

import pytest

from mlx_bert.data.questions import answer_metrics, normalize_answer, question_windows, window_sizes
from mlx_bert.tokenizer import Tokenizer


def test_answers_are_compared_as_squad_does():
    assert normalize_answer("  The  U.S. Army,\nan army ") == "us army army"
    found = answer_metrics(
        ["the cat", "a red dog", "bird", ""],
        [["Cat!"], ["dog", "big red dog"], ["fish"], ["house"]],
    )
    # 1, the overlap of "red dog" with "big red dog", 0, 0
    assert found == {"exact_match": 0.25, "f1": pytest.approx((1 + 2 * 2 / 5 + 0 + 0) / 4)}


def test_no_answer_is_an_answer():
    found = answer_metrics(["", "cat", "dog"], [[], [], ["dog"]])
    assert found == {
        "exact_match": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
        "unanswerable_accuracy": 0.5,
        "answerable_f1": 1.0,
    }
    assert "answerable_f1" not in answer_metrics([""], [[]])
    with pytest.raises(ValueError, match="expected an answer to each of 2 questions, at least one, but got 1"):
        answer_metrics(["a"], [["a"], ["b"]])


def test_windows_of_questions(tiny_bert_folder):
    tokenizer = Tokenizer.from_pretrained(tiny_bert_folder)
    context = "the dog is good and the cat is bad but the bird is happy"
    row = {"question": "is it", "context": context, "answers": {"text": ["the cat"], "answer_start": [20]}, "line": 7}
    assert context[20:27] == "the cat"
    windows = question_windows([row, {"question": "is it", "context": "the end"}], tokenizer, 12, 3, keep=True)
    assert {window["row"] for window in windows} == {0, 1}
    hits = [window for window in windows if window["labels"]["end_positions"]]
    assert hits
    for window in hits:
        span = slice(window["labels"]["start_positions"], window["labels"]["end_positions"] + 1)
        assert window["encoding"].tokens[span] == ["the", "cat"]
        assert window["source"] is row
    assert "encoding" not in question_windows([row], tokenizer, 12, 3)[0]
    assert windows[0]["line"] == 7
    assert question_windows([], tokenizer) == []
    assert window_sizes(tokenizer, None, None) == (64, 21)
    assert window_sizes(tokenizer, 500, 100) == (500, 100)
