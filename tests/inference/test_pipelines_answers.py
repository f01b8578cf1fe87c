"""Answers to questions, against the algorithm of transformers 4 written out with its tokenizers and torch."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from pipeline_cases import LONG, TEXTS, assert_alike, assert_same_in_any_batch, save, save_byte_tokenizer

from mlx_bert.inference.pipelines import pipeline
from mlx_bert.inference.pipelines.question_answering import _choose

QUESTIONS = ["who walked?", "what was it that the dog saw", "Did Paul walk never slowly in the old city?"]
ITEMS = [{"question": question, "context": context} for question in QUESTIONS for context in (TEXTS[0], LONG, TEXTS[2])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("answers"), "ForQuestionAnswering")


@pytest.fixture(scope="module")
def oracle(folder):
    return pipeline("question-answering", folder)


class Reference:
    """pipelines/question_answering.py of transformers 4.57, for fast tokenizers that pad on the right."""

    def __init__(self, folder):
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()

    def __call__(self, question, context, top_k=1, doc_stride=None, max_answer_len=15, max_seq_len=None,
                 handle_impossible_answer=False, align_to_words=True):  # fmt: skip
        max_seq_len = max_seq_len or min(self.tokenizer.model_max_length, 384)
        doc_stride = min(max_seq_len // 2, 128) if doc_stride is None else doc_stride
        encoded = self.tokenizer(
            question, context, truncation="only_second", max_length=max_seq_len, stride=doc_stride,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        answers, null_score = [], 1_000_000.0
        for window in range(len(encoded["input_ids"])):
            ids = encoded["input_ids"][window]
            types = encoded["token_type_ids"][window]
            with torch.no_grad():
                output = self.model(torch.tensor([ids]), token_type_ids=torch.tensor([types]))
            usable = np.array([
                sequence == 1 or token == self.tokenizer.cls_token_id
                for sequence, token in zip(encoded.sequence_ids(window), ids, strict=True)
            ])  # fmt: skip
            start, end = (np.where(usable, logits[0].numpy(), -10000.0) for logits in output[:2])
            start, end = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (start, end))
            if handle_impossible_answer:
                null_score = min(null_score, float(start[0] * end[0]))
            start[0] = end[0] = 0.0
            outer = np.tril(np.triu(np.outer(start, end)), max_answer_len - 1)
            count = 2 * top_k + 10 if align_to_words else top_k
            for place in np.argsort(-outer.ravel(), kind="stable")[:count]:
                first, last = np.unravel_index(place, outer.shape)
                if outer[first, last] == 0.0:  # no span: only fewer than asked for are left
                    continue
                a, b = self.characters(encoded, window, int(first), int(last), align_to_words)
                same = [answer for answer in answers if answer["answer"].lower() == context[a:b].lower()]
                if same:
                    same[0]["score"] += float(outer[first, last])
                else:
                    score = float(outer[first, last])
                    answers.append({"score": score, "start": a, "end": b, "answer": context[a:b]})
        if handle_impossible_answer:
            answers.append({"score": null_score, "start": 0, "end": 0, "answer": ""})
        answers = sorted(answers, key=lambda answer: answer["score"], reverse=True)[:top_k]
        return answers[0] if len(answers) == 1 else answers

    @staticmethod
    def characters(encoded, window, first, last, align_to_words):
        if align_to_words:
            words = encoded.token_to_word(window, first), encoded.token_to_word(window, last)
            spans = [encoded.word_to_chars(window, word, sequence_index=1) for word in words]
            return spans[0].start, spans[1].end
        offsets = encoded["offset_mapping"][window]
        return offsets[first][0], offsets[last][1]


OPTIONS = {
    "nothing": {},
    "several": {"top_k": 5},
    "many": {"top_k": 40},
    "tokens": {"align_to_words": False},
    "several tokens": {"align_to_words": False, "top_k": 7},
    "short": {"max_answer_len": 2, "top_k": 3},
    "long": {"max_answer_len": 50, "top_k": 3},
    "impossible": {"handle_impossible_answer": True, "top_k": 4},
    "impossible alone": {"handle_impossible_answer": True},
    "narrow windows": {"max_seq_len": 32, "doc_stride": 3, "top_k": 3},
    "no overlap": {"max_seq_len": 40, "doc_stride": 0, "handle_impossible_answer": True, "top_k": 2},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_answers(folder, oracle, name):
    reference = Reference(folder)
    for item in ITEMS:
        found = oracle(item, **OPTIONS[name])
        assert_alike(found, reference(**item, **OPTIONS[name]))
        for answer in found if isinstance(found, list) else [found]:
            assert answer["answer"] == item["context"][answer["start"] : answer["end"]]
    assert_same_in_any_batch(oracle, ITEMS, **OPTIONS[name])


@pytest.mark.parametrize("name", ["several", "tokens", "narrow windows"])
def test_answers_of_a_byte_level_tokenizer(tmp_path, name):
    folder = save(tmp_path, "ForQuestionAnswering")
    save_byte_tokenizer(folder)
    oracle, reference = pipeline("question-answering", folder), Reference(folder)
    for item in ITEMS[1:4]:
        options = {**OPTIONS[name], "max_seq_len": 60}
        assert_alike(oracle(item, **options), reference(**item, **options))


def test_the_windows_reach_the_end(oracle):
    found = oracle(ITEMS[1], top_k=300)
    assert max(answer["start"] for answer in found) > 400


def test_some_answers_are_impossible_and_some_words_are_found_twice(folder, oracle):
    """The cases above would show little if they never came to this."""
    assert any(oracle(item, handle_impossible_answer=True, top_k=30)[-1]["score"] >= 0 for item in ITEMS)
    answers = [oracle(item, top_k=1) for item in ITEMS]
    alone = [oracle(item, top_k=1, align_to_words=False) for item in ITEMS]
    assert any(a["score"] > b["score"] + 1e-3 for a, b in zip(answers, alone, strict=True))


def test_every_form_of_input(oracle):
    question, context = QUESTIONS[0], TEXTS[0]
    wanted = oracle({"question": question, "context": context})
    assert set(wanted) == {"score", "start", "end", "answer"}
    squad = {"id": "1", "title": "t", "answers": {"text": [], "answer_start": []}}
    for found in (
        oracle(question=question, context=context),
        oracle(question, context),
        oracle([{"question": question, "context": context}]),
        oracle(question=[question], context=[context]),
        oracle({"question": question, "context": context, **squad}),
    ):
        assert_alike(found, wanted)
    several = oracle(question=QUESTIONS, context=context)
    assert_alike(several, oracle(question=QUESTIONS, context=[context] * 3))
    assert_alike(several, [oracle(question=each, context=context) for each in QUESTIONS])
    assert oracle([]) == []


def test_a_long_question_is_cut(folder, oracle):
    words = " ".join(["walk"] * 30)
    assert_alike(oracle(words, TEXTS[0], max_question_len=9), Reference(folder)(" ".join(["walk"] * 9), TEXTS[0]))
    items = [{"question": words, "context": LONG}, {"question": "who?", "context": LONG}]
    assert_alike(oracle(items), [oracle(items[0], doc_stride=30), oracle(items[1], doc_stride=32)])
    assert oracle(words, TEXTS[0], max_question_len=30)["score"] != oracle(words, TEXTS[0], max_question_len=9)["score"]


def test_a_context_without_tokens_has_no_answer(oracle):
    assert oracle("who?", "  ") == {"score": 0.0, "start": 0, "end": 0, "answer": ""}


def test_bounds_of_the_model(folder, oracle, tmp_path):
    """Windows hold 384 tokens, or what the model can take."""
    assert_alike(oracle(ITEMS[1], max_seq_len=500, doc_stride=32), oracle(ITEMS[1], max_seq_len=64))
    config = {**json.loads((folder / "config.json").read_text()), "max_position_embeddings": 1024}
    model = transformers.BertForQuestionAnswering(transformers.BertConfig(**config))
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text().replace('"model_max_length": 64', '"model_max_length": 1024')
        (tmp_path / name).write_text(text)
    item = {"question": "who?", "context": LONG * 4}
    wide = pipeline("question-answering", tmp_path)
    assert_alike(wide(item), wide(item, max_seq_len=384, doc_stride=128))
    assert_alike(wide(item), Reference(tmp_path)(**item))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "expected top_k of at least 1 but got 0"),
        ({"max_answer_len": 0}, "expected max_answer_len of at least 1 but got 0"),
        ({"max_question_len": 0}, "expected max_question_len of at least 1 but got 0"),
        ({"max_seq_len": 30, "doc_stride": 31}, "expected doc_stride of at most max_seq_len, 30, but got 31"),
        ({"max_seq_len": 30, "doc_stride": 29}, "expected a stride from 0 to"),
    ],
)
def test_bad_numbers(oracle, options, message):
    with pytest.raises(ValueError, match=message):
        oracle(ITEMS[1], **options)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (({"question": "who?"},), r"with a context but got \"\{'question': 'who\?'\}"),
        (({"question": "", "context": "a"},), "with a question but got"),
        (({"question": None, "context": "a"},), "with a question but got"),
        (([3],), "with a question but got '3'"),
        ((), "expected a text, a list or an iterator but got NoneType"),
        ((["a", "b"], ["c"]), "expected a context for each of 2 questions but got 1"),
        (("a", 3), "expected a question and its context, or lists of them, but got str and int"),
        ((["a"], 3), "expected a question and its context, or lists of them, but got list and int"),
    ],
)
def test_bad_inputs(oracle, inputs, message):
    with pytest.raises(ValueError, match=message):
        oracle(*inputs)


def test_the_same_words_are_one_answer_in_any_case():
    window = SimpleNamespace(offsets=[(0, 3), (4, 7), (8, 11)])
    found = _choose("Ada and ada", [(window, [(0, 0, 0.25), (2, 2, 0.5), (1, 1, 0.3)], 0.0)], 2, False, False)
    assert found == [
        {"score": 0.75, "start": 0, "end": 3, "answer": "Ada"},
        {"score": 0.3, "start": 4, "end": 7, "answer": "and"},
    ]
