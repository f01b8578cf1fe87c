"""From the command line, too, a frozen encoder's outputs are kept for groups of texts and for windows."""

import numpy as np
import pytest
from cli_cases import MOODS, THINGS, lines

from mlx_bert.checkpoint import read_json
from mlx_bert.core import BertCore

CHOICES = [{"question": f"the {thing}", "choices": ["is bad", "is good"], "label": 1} for thing in THINGS]
LISTS = [
    {"query": f"the {thing}", "documents": ["is bad", "is good", "so"][: 2 + n % 2], "labels": [0, 1, 0][: 2 + n % 2]}
    for n, thing in enumerate(THINGS)
]
TRIPLETS = [{"anchor": f"the {thing}", "positive": "is good", "negative": "is bad"} for thing in THINGS]
START = "the day and the night "
QUESTIONS = [
    {"question": "who", "context": START * 2 + mood, "answers": {"text": [mood], "answer_start": [2 * len(START)]}}
    for mood in MOODS * 3
]
TAGS = [{"tokens": f"{START} {mood}".split() * 3, "tags": ["O", "O", "O", "O", "O", "B-M"] * 3} for mood in MOODS * 3]


@pytest.mark.parametrize(
    ("task", "rows", "options"),
    [
        ("multiple_choice", CHOICES, ()),
        ("ranking", LISTS, ()),
        ("contrastive", TRIPLETS, ()),
        ("question_answering", QUESTIONS, ("--max-length", "14", "--stride", "3")),
        ("token_classification", TAGS, ("--max-length", "12", "--stride", "3")),
    ],
)
def test_a_frozen_encoder_runs_once(command, tmp_path, monkeypatch, task, rows, options):
    data = lines(tmp_path / "rows.jsonl", rows)
    ran, call, found = [], BertCore.__call__, []

    def counted(self, input_ids, *args, **kwargs):
        ran.append(len(input_ids))
        return call(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(BertCore, "__call__", counted)
    for name, given in (("kept", ()), ("plain", ("--no-cache-encoder",))):
        ran.clear()
        command(
            "train", "--task", task, "--train", data, "--eval", data, "--freeze", "backbone", "--epochs", "3",
            "--batch-size", "2", "--dropout", "0", "--log-every", "1", "--metric", "loss", "--output",
            tmp_path / name, *options, *given,
        )  # fmt: skip
        history = read_json(tmp_path / name / "history.json")
        found.append((sum(ran), [record["loss"] for record in history["steps"]], history["epochs"][-1]["eval_loss"]))
    (kept, losses, measured), (plain, wanted, reference) = found
    assert 0 < kept <= plain / 3
    np.testing.assert_allclose(losses, wanted, atol=1e-3)
    np.testing.assert_allclose(measured, reference, atol=1e-3)
    assert len(losses) >= 12
