"""Windows over long texts: cutting, targets, and one result from all windows."""

import itertools
import re

import numpy as np
import pytest

from mlx_bert.data.windows import (
    NO_ANSWER,
    answer_targets,
    best_answers,
    join_windows,
    most_context,
    text_mask,
    whole_offsets,
    window_starts,
)
from mlx_bert.tokenizer import Tokenizer

TEXT = "the dog is good and the cat is bad but the bird is happy so we love it"


@pytest.fixture(scope="module")
def tokenizer(tiny_bert_folder):
    return Tokenizer.from_pretrained(tiny_bert_folder)


@pytest.fixture(scope="module")
def windows(tokenizer):
    """18 tokens in windows of 6 that share 2."""
    return tokenizer.encode_windows([TEXT], max_length=8, stride=2)[0]


def test_windows_are_those_of_transformers(tiny_bert_folder, tokenizer):
    import transformers

    reference = transformers.AutoTokenizer.from_pretrained(tiny_bert_folder)
    questions, contexts = ["the dog", "is it"], [TEXT, "we love it"]
    wanted = reference(questions, contexts, truncation="only_second", max_length=12, stride=3,
                       return_overflowing_tokens=True, return_token_type_ids=True)  # fmt: skip
    ours = tokenizer.encode_windows(questions, contexts, max_length=12, stride=3)
    assert [len(each) for each in ours] == [wanted["overflow_to_sample_mapping"].count(row) for row in (0, 1)]
    assert [window.ids for each in ours for window in each] == wanted["input_ids"]
    assert [window.type_ids for each in ours for window in each] == wanted["token_type_ids"]
    # windows leave no trace in what comes after
    assert (
        tokenizer.encode([TEXT], max_length=8)[0].ids
        == reference([TEXT], truncation=True, max_length=8)["input_ids"][0]
    )


def test_windows_need_room(tokenizer):
    with pytest.raises(
        ValueError, match="expected a stride from 0 to 5 but got 6: a window of 8 tokens has room for 6"
    ):
        tokenizer.encode_windows([TEXT], max_length=8, stride=6)
    with pytest.raises(ValueError, match="beside question 1, which has 8"):
        tokenizer.encode_windows(["the", "the dog is good and the cat is"], [TEXT, TEXT], max_length=14, stride=4)
    with pytest.raises(ValueError, match=r"window of 14 tokens but got none beside question 0, which has 14. Raise"):
        tokenizer.encode_windows(["the dog " * 7], [TEXT], max_length=14, stride=4)
    with pytest.raises(ValueError, match="stride from 0"):
        tokenizer.encode_windows([TEXT], max_length=8, stride=-1)


def test_starts_and_offsets_cover_the_text(windows):
    assert window_starts(windows, 2) == [0, 4, 8, 12]
    words = TEXT.split()
    assert [TEXT[a:b] for a, b in whole_offsets(windows, 2)] == words
    for start, window in zip(window_starts(windows, 2), windows, strict=True):
        own = np.array(window.tokens)[text_mask(window)]
        assert list(own) == words[start : start + len(own)]


def test_each_token_comes_from_where_most_is_around_it(windows):
    # shared: 4 and 5 (in 0: 1 and 0 after them; in 1: 0 and 1 before them), and so on; of equals the first wins
    assert most_context(windows, 2).tolist() == [0] * 5 + [1] * 4 + [2] * 4 + [3] * 5
    values = [np.full((len(window), 3), number) for number, window in enumerate(windows)]
    joined = join_windows(windows, values, 2)
    assert joined.shape == (18, 3)
    assert joined[:, 1].tolist() == most_context(windows, 2).tolist()


def test_a_word_is_not_cut(windows):
    words = np.arange(18)
    words[4:6] = 4  # both in windows 0 and 1: 0 sees as much
    words[9:11] = 9  # window 2 begins at 8 and is the only one to hold it whole
    words[12:14] = -1
    owner = most_context(windows, 2, words=words)
    assert owner[4] == owner[5] == 0
    assert owner[9] == owner[10] == 2
    assert owner[12:14].tolist() == most_context(windows, 2)[12:14].tolist()
    words[:] = 0  # longer than any window: each token from where it is seen
    assert set(most_context(windows, 2, words=words)) == {0, 1, 2, 3}


def test_joining_wants_every_token(windows):
    with pytest.raises(ValueError, match=r"expected values for \[8, 8, 8, 8\] tokens but got \[9"):
        join_windows(windows, [np.zeros((9, 2))] * 4, 2)


def test_answer_targets_point_to_the_answer_or_to_the_first_token(tokenizer):
    windows = tokenizer.encode_windows(["is it"], [TEXT], max_length=12, stride=2)[0]
    assert len(windows) > 2
    words = [(match.start(), match.end()) for match in re.finditer(r"\S+", TEXT)]
    for first_word, last_word in itertools.combinations_with_replacement(range(len(words)), 2):
        start, end = words[first_word][0], words[last_word][1]
        for window in windows:
            first, last = answer_targets(window, start, end)
            places = np.flatnonzero(text_mask(window, 1))
            if window.offsets[places[0]][0] <= start and window.offsets[places[-1]][1] >= end:
                assert (window.offsets[first][0], window.offsets[last][1]) == (start, end)
            else:
                assert (first, last) == (NO_ANSWER, NO_ANSWER)
    assert answer_targets(windows[0], 0, 0) == (NO_ANSWER, NO_ANSWER)
    # within a word: the whole token
    first, last = answer_targets(windows[0], 5, 6)
    assert windows[0].tokens[first : last + 1] == ["dog"]


def answers_at(tokenizer, scores, **options):
    """Answers where the named word gets a score in each window that has it."""
    windows = tokenizer.encode_windows(["is it"], [TEXT], max_length=16, stride=2)[0]
    rows = []
    for window in windows:
        row = np.zeros(len(window), dtype=np.float32)
        for place, (token, sequence) in enumerate(zip(window.tokens, window.sequence_ids, strict=True)):
            if sequence == 1 or token == "[CLS]":
                row[place] = scores.get(token, 0.0)
        rows.append(row)
    return best_answers(TEXT, windows, rows, rows, **options), windows, rows


def test_best_answers_over_all_windows(tokenizer):
    answers, _, rows = answers_at(tokenizer, {"happy": 9.0, "dog": 6.0, "[CLS]": 30.0}, top_k=3, max_answer_length=1)
    assert [answer.text for answer in answers[:2]] == ["happy", "dog"]  # the question and [CLS] are no answers
    assert answers[0].score == 18.0
    assert TEXT[answers[0].start : answers[0].end] == "happy"
    assert len({(a.start, a.end) for a in answers}) == 3  # a place that two windows share comes once
    total = sum(np.exp(row[4:-1]).sum() for row in rows)  # [CLS] is it [SEP] ... [SEP]
    assert len(rows[0]) == 16
    assert answers[0].probability == pytest.approx((np.exp(9.0) / total) ** 2, rel=1e-5)


def test_no_answer_wins_by_more_than_the_threshold(tokenizer):
    scores = {"happy": 4.0, "[CLS]": 5.0}  # null score 10 against 8
    found = {
        limit: answers_at(tokenizer, scores, null_threshold=limit, max_answer_length=1)[0][0].text
        for limit in (1.0, 2.0, 3.0)
    }
    assert found == {1.0: "", 2.0: "happy", 3.0: "happy"}
    both, *_ = answers_at(tokenizer, scores, null_threshold=3.0, top_k=2, max_answer_length=1)
    assert [answer.text for answer in both] == ["happy", ""]
    assert sum(answer.probability for answer in both) < 1


def test_best_answers_want_every_token(tokenizer):
    _, windows, rows = answers_at(tokenizer, {})
    with pytest.raises(ValueError, match="expected logits for"):
        best_answers(TEXT, windows, rows, rows[:-1])
