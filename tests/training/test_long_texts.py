"""Tagging and question answering over windows, trained through the Trainer."""

import random

import mlx.core as mx
import numpy as np
import pytest

from mlx_bert.data.alignment import tag_windows
from mlx_bert.data.questions import question_windows
from mlx_bert.factory import create_bert_with_head
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.long_texts import QuestionObjective, TaggingObjective, WindowCollator, numbered
from mlx_bert.training.trainer import Trainer

WORDS = ["the", "movie", "book", "food", "day", "night", "city", "house", "tree", "very", "so", "it", "that"]
MOODS = ("happy", "sad", "angry")
TAGS = ["O", "B-PET", "I-PET", "B-MOOD"]
FAST = {"batch_size": 16, "progress": False, "save_every": "no", "schedule": "constant", "warmup_ratio": 0.0}
RATES = {"learning_rate": 3e-3, "head_learning_rate": 1e-2}


@pytest.fixture(scope="module")
def tokenizer(tiny_bert_folder):
    return Tokenizer.from_pretrained(tiny_bert_folder)


def new_model(folder, head_type, **options):
    mx.random.seed(3)
    return create_bert_with_head(bert_name=folder, head_type=head_type, dropout_prob=0.0, **options)


def tagged(count, length, seed=0):
    """Words among which pets of two words and moods of one stand."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        tokens, tags = [], []
        while len(tokens) < length:
            kind = rng.random()
            if kind < 0.15:
                tokens += [rng.choice(("cat", "dog")), "bird"]
                tags += ["B-PET", "I-PET"]
            elif kind < 0.25:
                tokens.append(rng.choice(MOODS))
                tags.append("B-MOOD")
            else:
                tokens.append(rng.choice(WORDS))
                tags.append("O")
        rows.append({"tokens": tokens, "tags": tags, "text": " ".join(tokens)})
    return rows


def asked(count, length, seed=0, impossible=()):
    """Contexts in which one word of mood stands; it is the answer."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        words = [rng.choice(WORDS) for _ in range(length)]
        words.insert(rng.randrange(length), "red" if number in impossible else rng.choice(MOODS))
        context = " ".join(words)
        found = [word for word in words if word in MOODS]
        answers = {"text": found, "answer_start": [context.index(word) for word in found]}
        rows.append({"question": "the day", "context": context, "answers": answers, "line": number + 1})
    return rows


def train_tags(folder, tokenizer, tmp_path, train, held_out, every_token=False, **options):
    model = new_model(folder, "token_classification", num_labels=len(TAGS), **options)
    windows = tag_windows(train, tokenizer, TAGS, 16, 4, every_token)
    measured = numbered(tag_windows(held_out, tokenizer, TAGS, 16, 4))
    args = TrainingArgs(output_dir=str(tmp_path / "run"), epochs=6, metric="entity_f1", **FAST, **RATES)
    collate = WindowCollator(tokenizer.pad_id)
    objective = TaggingObjective(measured, held_out, TAGS)
    return Trainer(model, args, windows, measured, tokenizer, collate, objective), len(windows)


@pytest.mark.parametrize("crf", [False, True])
def test_tags_of_long_texts_are_learnt(tiny_bert_folder, tokenizer, tmp_path, crf):
    train, held_out = tagged(24, 40), tagged(6, 90, seed=1)  # longer than the encoder holds
    trainer, count = train_tags(tiny_bert_folder, tokenizer, tmp_path, train, held_out, crf, use_crf=crf)
    assert count > 80  # several windows of each text
    result = trainer.train()
    assert result.metrics["entity_f1"] > 0.95
    assert result.metrics["accuracy"] > 0.95


def test_metrics_count_every_word_once(tiny_bert_folder, tokenizer):
    rows = tagged(5, 50, seed=2)
    windows = numbered(tag_windows(rows, tokenizer, TAGS, 16, 4))
    words = [(window["row"], word) for window in windows for word, _ in window["words"]]
    assert sorted(words) == [(row, word) for row, each in enumerate(rows) for word in range(len(each["tokens"]))]
    objective = TaggingObjective(windows, rows, TAGS)
    # what a window says of its own words is right, of the others wrong; in any order, padded on either side
    for offset in (0, 3):
        predictions = np.zeros((len(windows), 30), dtype=int)
        for place, window in enumerate(windows):
            for word, token in window["words"]:
                predictions[place, token + offset] = TAGS.index(rows[window["row"]]["tags"][word])
        order = np.random.default_rng(0).permutation(len(windows))
        labels = {"window": mx.array(order), "offset": mx.full((len(order),), offset, dtype=mx.int32)}
        metrics = objective.metrics(None, {"predictions": mx.array(predictions[order])}, labels)
        assert metrics == dict.fromkeys(metrics, 1.0)
    predictions[np.arange(len(windows)), [window["words"][0][1] + 3 for window in windows]] = 3
    metrics = objective.metrics(None, {"predictions": mx.array(predictions[order])}, labels)
    assert metrics["accuracy"] < 1
    assert metrics["entity_f1"] < 1


def test_answers_in_long_contexts_are_found(tiny_bert_folder, tokenizer, tmp_path):
    train, held_out = asked(40, 30), asked(8, 100, seed=1)
    model = new_model(tiny_bert_folder, "question_answering")
    windows = question_windows(train, tokenizer, 24, 6)
    measured = numbered(question_windows(held_out, tokenizer, 24, 6, keep=True))
    assert len(measured) >= 8 * 6
    assert {window["line"] for window in windows} == set(range(1, 41))
    args = TrainingArgs(output_dir=str(tmp_path / "run"), epochs=6, metric="f1", **FAST, **RATES)
    objective = QuestionObjective(measured)
    trainer = Trainer(model, args, windows, measured, tokenizer, WindowCollator(tokenizer.pad_id), objective)
    assert trainer.evaluate()["exact_match"] < 0.5
    result = trainer.train()
    assert result.metrics["exact_match"] >= 0.95
    assert result.metrics["f1"] >= 0.95


def test_questions_without_an_answer(tiny_bert_folder, tokenizer, tmp_path):
    train, held_out = asked(40, 30, impossible=range(0, 40, 3)), asked(9, 60, seed=1, impossible=(0, 4, 8))
    model = new_model(tiny_bert_folder, "question_answering")
    windows = question_windows(train, tokenizer, 24, 6)
    assert all(
        window["labels"] == {"start_positions": 0, "end_positions": 0} for window in windows if not window["row"]
    )
    measured = numbered(question_windows(held_out, tokenizer, 24, 6, keep=True))
    args = TrainingArgs(output_dir=str(tmp_path / "run"), epochs=6, metric="f1", **FAST, **RATES)
    objective = QuestionObjective(measured, null_threshold=0.0)
    trainer = Trainer(model, args, windows, measured, tokenizer, WindowCollator(tokenizer.pad_id), objective)
    result = trainer.train()
    assert result.metrics["unanswerable_accuracy"] >= 0.6
    assert result.metrics["answerable_f1"] >= 0.8


@pytest.mark.parametrize("kind", ["tags", "answers"])
def test_padding_on_the_left_moves_labels(tokenizer, kind):
    if kind == "tags":
        windows = numbered(tag_windows(tagged(2, 9) + tagged(1, 5), tokenizer, TAGS, 16, 4))
    else:
        windows = numbered(question_windows(asked(3, 12), tokenizer, 16, 4, keep=True))
    right, left = (WindowCollator(tokenizer.pad_id, side)(windows) for side in ("right", "left"))
    length = right["input_ids"].shape[1]
    for row, window in enumerate(windows):
        offset = length - len(window["input_ids"])
        assert left["labels"]["offset"][row].item() == offset
        assert right["labels"]["offset"][row].item() == 0
        for name in ("start_positions", "end_positions") if kind == "answers" else ():
            place = left["labels"][name][row].item()
            assert left["input_ids"][row, place].item() == window["input_ids"][window["labels"][name]]
        if kind == "tags":
            assert left["labels"]["tags"][row, offset:].tolist() == window["labels"].tolist()


def test_frozen_outputs_are_cached_for_windows(tiny_bert_folder, tokenizer, tmp_path):
    train = tagged(4, 30)
    model = new_model(tiny_bert_folder, "token_classification", num_labels=len(TAGS))
    measured = numbered(tag_windows(train, tokenizer, TAGS, 16, 4))
    args = TrainingArgs(output_dir=str(tmp_path / "run"), epochs=2, freeze="backbone", **FAST, **RATES)
    trainer = Trainer(model, args, tag_windows(train, tokenizer, TAGS, 16, 4), measured, tokenizer,
                      WindowCollator(tokenizer.pad_id), TaggingObjective(measured, train, TAGS))  # fmt: skip
    result = trainer.train()
    assert trainer.feed.is_cached
    before = result.metrics
    trainer.feed.drop_cache()
    assert trainer.evaluate() == pytest.approx(before, abs=1e-4)


def test_answers_come_from_behind_the_padding(tokenizer):
    (row,) = asked(1, 9)
    windows = numbered(question_windows([row], tokenizer, keep=True))
    objective = QuestionObjective(windows)
    place = windows[0]["labels"]["start_positions"]
    for offset in (0, 5):
        logits = mx.zeros((1, 40)).at[0, place + offset].add(9.0)
        found = objective.answers(
            {"start_logits": logits, "end_logits": logits},
            {"window": mx.array([0]), "offset": mx.array([offset])},
        )
        assert found[0][0].text == row["answers"]["text"][0]
