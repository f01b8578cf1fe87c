"""Each kind of examples: the layouts it takes, and what it refuses."""

import json

import pytest

from mlx_bert.data.kinds import KINDS
from mlx_bert.data.readers import read_examples, read_kind, read_tasks

CONTEXT = "The cat sleeps. The dog runs."
DOCUMENTS = ["one", "two", "three"]

# kind, rows in a customary layout, what the first example then holds
LAYOUTS = [
    ("text", [{"text": "a"}], {"text": "a"}),
    ("class", [{"sentence": "a", "label": 1}], {"text": "a", "label": "1"}),
    ("multilabel", [{"text": "a", "labels": "x|y"}], {"label": ["x", "y"]}),
    ("multilabel", [{"text": "a", "label": '["x", "y"]'}], {"label": ["x", "y"]}),
    ("number", [{"text": "a", "targets": [1, 2.5]}], {"label": [1.0, 2.5]}),
    ("number", [{"text": "a", "score": "3"}], {"label": 3.0}),
    ("tagging", [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}], {"text": "a b", "tags": ["O", "B-X"]}),
    ("tagging", [{"words": "a b", "tags": "O B-X"}], {"tokens": ["a", "b"], "tags": ["O", "B-X"]}),
    ("tagging", [{"tokens": '["[", "b"]', "tags": "O O"}], {"tokens": ["[", "b"]}),
    (
        "question_answering",
        [{"question": "Who?", "context": CONTEXT, "answers": {"text": ["cat"], "answer_start": [4]}}],
        {"answers": {"text": ["cat"], "answer_start": [4]}},
    ),
    (
        "question_answering",
        [{"question": "Who?", "context": CONTEXT, "answers": '[{"text": "cat", "answer_start": 4}]'}],
        {"answers": {"text": ["cat"], "answer_start": [4]}},
    ),
    (
        "question_answering",
        [{"question": "Who?", "context": CONTEXT, "answer": "dog", "answer_start": "20"}],
        {"answers": {"text": ["dog"], "answer_start": [20]}},
    ),
    (
        "question_answering",
        [{"question": "Who?", "context": CONTEXT, "answer_text": "dog"}],  # stands there once: its place is known
        {"answers": {"text": ["dog"], "answer_start": [20]}},
    ),
    (
        "question_answering",
        [{"question": "Who?", "context": CONTEXT, "answer": "", "is_impossible": True}],
        {"answers": {"text": [], "answer_start": []}},
    ),
    ("multiple_choice", [{"question": "a", "choices": ["x", "y"], "label": "B"}], {"text": "a", "label": 1}),
    ("multiple_choice", [{"context": "a", "endings": "x|y|z", "label": 2}], {"choices": ["x", "y", "z"], "label": 2}),
    ("ranking", [{"query": "q", "documents": DOCUMENTS, "labels": [2, 0, 1]}], {"labels": [2.0, 0.0, 1.0]}),
    ("ranking", [{"query": "q", "pos": "one", "neg": ["two"]}], {"documents": ["one", "two"], "labels": [1.0, 0.0]}),
    (
        "ranking",
        [{"query": "q", "document": text, "label": grade} for text, grade in zip(DOCUMENTS, "201", strict=True)],
        {"documents": DOCUMENTS, "labels": [2.0, 0.0, 1.0]},
    ),
    ("scored_pair", [{"text_a": "a", "text_b": "b", "score": 4}], {"text": "a", "text_pair": "b", "score": 4.0}),
    ("labelled_pair", [{"premise": "a", "hypothesis": "b", "label": 0}], {"text_pair": "b", "label": "0"}),
    ("positive_pair", [{"query": "a", "pos": "b"}], {"anchor": "a", "positive": "b"}),
    ("triplet", [{"anchor": "a", "positive": "b", "negative": "c"}], {"anchor": "a", "negative": "c"}),
    ("triplet", [{"query": "a", "pos": "b", "neg": ["c", "d"]}], {"anchor": "a", "negative": ["c", "d"]}),
    (
        "distillation",
        [{"anchor": "a", "positive": "b", "negative": "c", "scores": [3, 1.5]}],
        {"positive": "b", "scores": [3.0, 1.5]},
    ),
    (
        "joint",
        [{"text": "to rome", "label": "go", "tags": ["O", "B-city"]}],
        {"tokens": ["to", "rome"], "intent": "go", "tags": ["O", "B-city"]},
    ),
    (
        "joint",
        [{"tokens": ["to", "rome"], "intent": "go", "tags": ["O", "B-city"]}],
        {"tokens": ["to", "rome"], "intent": "go"},
    ),
    ("teacher", [{"sentence": "a", "label": [3, 1.5]}], {"text": "a", "labels": [3.0, 1.5]}),
    (
        "teacher",
        [{"english": "a", "non_english": "b", "embedding": "[3, 1.5]"}],
        {"text": "a", "text_pair": "b", "labels": [3.0, 1.5]},
    ),
]


@pytest.mark.parametrize(("kind", "rows", "wanted"), LAYOUTS)
def test_layouts(kind, rows, wanted):
    example = read_kind(rows, kind)[0]
    assert {role: example[role] for role in wanted} == wanted
    assert example["line"] == 1


def test_every_kind_has_a_layout():
    assert {kind for kind, *_ in LAYOUTS} == set(KINDS)


BAD = [
    ("tagging", {"tokens": ["a", "b"], "tags": ["O"]}, "expected 2 tags, one per token, but got 1"),
    ("tagging", {"tokens": ["a b"], "tags": ["O"]}, "expected words without white space in column 'tokens'"),
    ("tagging", {"tokens": [], "tags": []}, "expected a list of words in column 'tokens'"),
    (
        "question_answering",
        {"question": "Who?", "context": CONTEXT, "answers": {"text": ["cat"], "answer_start": [5]}},
        "expected the answer 'cat' at character 5 of the context but got 'at '",
    ),
    (
        "question_answering",
        {"question": "Who?", "context": CONTEXT, "answer": "The"},  # stands there twice
        "expected a text and a place in column 'answers'",
    ),
    (
        "question_answering",
        {"question": "Who?", "context": CONTEXT, "answers": {"text": ["a", "b"], "answer_start": [5]}},
        "expected as many answer_start as texts",
    ),
    ("question_answering", {"question": "Who?", "context": CONTEXT, "answers": "cat"}, "expected answers with text"),
    (
        "multiple_choice",
        {"question": "a", "choices": ["x", "y"], "label": 2},
        "expected a label from 0 to 1, or A to B",
    ),
    ("multiple_choice", {"question": "a", "choices": ["x"], "label": 0}, "expected at least 2 choices but got 1"),
    ("multiple_choice", {"question": "a", "choices": ["x", ""], "label": 0}, "empty text in column 'choices'"),
    ("ranking", {"query": "q", "documents": DOCUMENTS, "labels": [1]}, "expected 3 relevance labels, one per document"),
    ("scored_pair", {"text_a": "a", "text_b": "b", "score": "high"}, "expected a finite number in column 'score'"),
    ("multilabel", {"text": "a", "label": "[1"}, "expected a JSON list but got"),
    ("multilabel", {"text": "a", "label": 5}, "expected a list of labels in column 'label' but got 5"),
]


@pytest.mark.parametrize(("kind", "row", "message"), BAD)
def test_bad_rows_say_what_is_wrong(kind, row, message):
    with pytest.raises(ValueError, match="1 bad row") as caught:
        read_kind([row], kind)
    assert f"example 1: {message}" in str(caught.value)


def test_labels_of_several_columns():
    rows = [{"text": "a", "x": 1, "y": 0, "z": "1"}, {"text": "b", "x": 0, "y": 0, "z": False}]
    examples = read_examples(rows, label_column="x,y,z", label_kind="multilabel")
    assert [e["label"] for e in examples] == [["x", "z"], []]
    assert examples.classes == {"label": ("x", "y", "z")}  # y too, which no example has
    rows = [{"text": "a", "x": 1, "y": "0.5"}]
    assert read_examples(rows, label_column="x,y", label_kind="number")[0]["label"] == [1.0, 0.5]
    rows = [{"text": "a", "x": "1", "y": "two", "label": 1}]
    assert read_kind(rows, "multiple_choice", {"choices": ["x", "y"]})[0]["choices"] == ["1", "two"]
    with pytest.raises(ValueError, match="expected 0 or 1 in column 'x' but got 3"):
        read_examples([{"text": "a", "x": 3, "y": 0}], label_column="x,y", label_kind="multilabel")
    with pytest.raises(ValueError, match="has no column 'w'"):
        read_examples(rows, label_column="x,w", label_kind="number")


def test_choices_are_as_many_in_every_row():
    rows = [
        {"question": "a", "choices": ["x", "y"], "label": 0},
        {"question": "a", "choices": ["x", "y", "z"], "label": 0},
    ]
    with pytest.raises(ValueError, match="example 2: expected choices of 2 items as before but got 3"):
        read_kind(rows, "multiple_choice")


def test_targets_may_be_left_out():
    assert read_kind([{"tokens": ["a"]}], "tagging", labelled=False)[0] == {"line": 1, "tokens": ["a"], "text": "a"}
    example = read_kind([{"question": "Who?", "context": CONTEXT}], "question_answering", labelled=False)[0]
    assert "answers" not in example
    with pytest.raises(ValueError, match=r"has no column 'tags' or 'ner_tags'\. It has 'tokens'\. Name"):
        read_kind([{"tokens": ["a"]}], "tagging")


def test_weights_and_unknown_roles():
    rows = [{"text": "a", "label": "x", "w": 2}, {"text": "b", "label": "y", "w": -1}]
    assert read_kind(rows[:1], "class", {"weight": "w"})[0]["weight"] == 2.0
    with pytest.raises(ValueError, match="example 2: expected a weight of 0 or more in column 'w' but got -1"):
        read_kind(rows, "class", {"weight": "w"})
    with pytest.raises(ValueError, match="expected columns of text, label but got one of tags"):
        read_kind(rows, "class", {"tags": "w"})
    with pytest.raises(ValueError, match="expected a kind of examples among text, class"):
        read_kind(rows, "poem")


def test_a_column_per_task_with_partial_labels(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,intent,mood\na,x,\nb,,good\nc,y,bad\n")
    examples = read_tasks(path, {"intent": "intent", "tone": "mood"})
    assert [e["label"] for e in examples] == [
        {"intent": "x", "tone": None},
        {"intent": None, "tone": "good"},
        {"intent": "y", "tone": "bad"},
    ]
    assert list(examples[0]) == ["line", "text", "label"]
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "intent": "x"}\n{"text": "b", "mood": NaN}\n{"text": "c", "mood": "good"}\n')
    with pytest.raises(ValueError, match="line 2: expected a label of at least one task: intent, tone"):
        read_tasks(path, {"intent": "intent", "tone": "mood"})
    path.write_text(json.dumps({"text": "a", "intent": "x"}))
    with pytest.raises(ValueError, match="has no column 'mood'"):
        read_tasks(path, {"intent": "intent", "tone": "mood"})
