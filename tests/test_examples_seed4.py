"""The three example scripts from text to intents and tags: tokenizer, sentence encoder, joint model."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import pytest

from mlx_bert import ByteLevelBPE, JointIntentNER, SentenceEncoder
from mlx_bert.training.compact import SIZES

FOLDER = Path(__file__).parent.parent / "examples"
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_under_test", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Iterator[Path]:
    """A folder with the outputs of all three scripts, one after the other, on their own small data. Read only."""
    folder = tmp_path_factory.mktemp("scripts")
    script("train_tokenizer").run([], folder / "tokenizer", 400)
    pretrain = script("pretrain_sentence_encoder")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr("mlx_bert.training.compact.SIZES", {**SIZES, **SMALL})
    rows = [("a cat", "the cat", 5.0), ("a cat", "the rain", 0.5), ("some rain", "the rain", 4.2), ("sun", "rain", 1.0)]
    rows += [(f"{n} cats", f"{n} dogs", 3.0 + n % 3) for n in range(12)]
    lines = [json.dumps(dict(zip(("text_a", "text_b", "score"), row, strict=True))) for row in rows]
    (folder / "sts.jsonl").write_text("\n".join(lines))
    query = {"query": "where is the cat", "pos": ["the cat sleeps"], "neg": ["it rains", "two dogs"]}
    (folder / "queries.jsonl").write_text(json.dumps(query))
    options = {
        "tokenizer": folder / "tokenizer",
        "output": folder / "encoder",
        "epochs": 2,
        "batch_size": 8,
        "patience": 3,
    }
    data = {"sts": folder / "sts.jsonl", "largest_score": 5.0, "triplets": folder / "queries.jsonl"}
    found = pretrain.run(argparse.Namespace(**options, **data, dtype="float32", resume=False))
    assert found.keys() == {"loss", "accuracy", "positive", "negative", "spearman"}
    assert -1 <= found["spearman"] <= 1
    joint = script("joint_intent_ner")
    joint.made_up = lambda count, seed, make=joint.made_up: make(count // 6, seed)
    options = {"encoder": folder / "encoder", "train": None, "validation": None, "freeze": ["intent"]}
    settings = {"frozen_layers": None, "epochs": 1, "learning_rate": 1e-3, "resume": False}
    joint.run(argparse.Namespace(**options, **settings, output=folder / "joint"))
    yield folder
    monkeypatch.undo()


def test_each_script_writes_what_the_next_one_takes(work):
    assert ByteLevelBPE.from_file(work / "tokenizer").vocab_size == 400
    config = json.loads((work / "encoder" / "best_model" / "config.json").read_text())
    assert (config["model_type"], config["vocab_size"], config["pad_token_id"]) == ("compact", 400, 398)
    model = JointIntentNER.from_pretrained(work / "joint" / "best_model")
    assert model.intents == ["book_flight", "play_music", "set_alarm"]
    assert model.tags == ["O", "artist", "city", "room", "time"]
    (found,) = model.predict("wake me at noon")
    assert found["words"] == ["wake", "me", "at", "noon"]
    assert found["intent"] in model.intents
    # other parts read the encoder as well
    assert SentenceEncoder.from_pretrained(work / "encoder" / "best_model").encode(["a cat"]).shape == (1, 16)


def test_the_pretrained_encoder_is_the_backbone(work):
    trained = JointIntentNER.from_pretrained(work / "joint" / "final_model").bert.weights_on_disk()
    start = mx.load(str(work / "encoder" / "best_model" / "model.safetensors"))
    assert trained.keys() == start.keys()
    distance = max(mx.abs(trained[name] - start[name]).max().item() for name in start)
    assert 0 < distance < 0.1  # a fresh encoder would be farther away


def test_made_up_data():
    made = script("joint_intent_ner").made_up(30, 0)
    assert all(len(row["text"].split()) == len(row["tags"]) for row in made)
    assert {row["intent"] for row in made} == {"book_flight", "play_music", "set_alarm"}
    pretrain = script("pretrain_sentence_encoder")
    topic = {phrase: name for name, phrases in pretrain.TOPICS.items() for phrase in phrases}
    for triplet in pretrain.made_up(30):
        names = [next(name for phrase, name in topic.items() if phrase in text) for text in triplet]
        assert names[0] == names[1] != names[2]


def test_rows_of_files(tmp_path):
    joint = script("joint_intent_ner")
    (tmp_path / "a.jsonl").write_text(json.dumps({"tokens": ["go", "home"], "label": 3, "tags": ["O", "B-x"]}))
    assert joint.read_rows(tmp_path / "a.jsonl") == [{"text": "go home", "intent": "3", "tags": ["O", "B-x"]}]
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "go", "label": 3}))
    with pytest.raises(ValueError, match="expected text, intent and tags in row 1 of"):
        joint.read_rows(tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train_tokenizer", ["lost.txt"], "lost.txt does not exist"),
        ("pretrain_sentence_encoder", ["nowhere"], "nowhere has no tokenizer.json"),
        ("joint_intent_ner", ["./nowhere"], "nowhere"),
    ],
)
def test_errors_have_no_traceback(name, arguments, message, tmp_path):
    command = [sys.executable, str(FOLDER / f"{name}.py"), *arguments, "--output", str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment(), check=False)
    assert run.returncode == 2
    assert run.stderr.startswith(f"{name}: error: ")
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(FOLDER.parent)}
