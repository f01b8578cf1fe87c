"""The example data are what their README says, and the demo runs from end to end, on a tiny model."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from reference import redraw, save_word_tokenizer

ROOT = Path(__file__).parent.parent
DATA = ROOT / "examples" / "data"
TASKS = {
    "sentiment": ("negative", "neutral", "positive"),
    "intent": ("book_flight", "control_lights", "find_restaurant", "get_weather", "play_music", "set_alarm"),
    "emotion": ("anger", "fear", "joy", "neutral", "sadness", "surprise"),
}


def rows_of(task: str, part: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / task / f"{part}.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("task", TASKS)
def test_data_are_balanced_unique_and_held_out(task: str) -> None:
    train, held_out = rows_of(task, "train"), rows_of(task, "test")
    assert all(set(row) == {"text", "label"} for row in train + held_out)
    assert (len(train), len(held_out)) == (84, 30)
    for rows in (train, held_out):
        counts = Counter(row["label"] for row in rows)
        assert tuple(sorted(counts)) == TASKS[task]
        assert len(set(counts.values())) == 1
    texts = [row["text"].lower().strip(" .!?") for row in train + held_out]
    assert len(set(texts)) == len(texts)


def test_the_csv_has_the_same_rows_as_the_json_lines() -> None:
    with (DATA / "sentiment.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == rows_of("sentiment", "train")


def test_the_data_are_described() -> None:
    text = (DATA / "README.md").read_text("utf-8")
    assert "CC0" in text
    for task, labels in TASKS.items():
        assert f"| `{task}/` | {', '.join(labels)} | 84 | 30 |" in text


# --- the demo ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_under_test", ROOT / "examples" / "demo.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    folder = tmp_path_factory.mktemp("tiny-bert")
    config = transformers.BertConfig(
        vocab_size=256,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    redraw(transformers.BertModel(config)).save_pretrained(folder)
    save_word_tokenizer(folder)
    return folder


def test_the_demo_runs_from_a_checkpoint_to_predictions(tiny_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / ".mlx-bert-demo").touch()
    (output / "left-over").touch()  # of an earlier demo, which this one replaces
    command = [sys.executable, ROOT / "examples" / "demo.py", tiny_folder, "--output", output, "--epochs", "1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for task in TASKS:
        assert f"{task}: accuracy 0." in done.stdout
        assert (output / task / "final_model" / "head" / "model.safetensors").is_file()
    assert (output / "encoder" / "model.safetensors").is_file()
    assert not (output / "left-over").exists()
    assert f'predict --model {Path("out") / "sentiment" / "final_model"} "' in done.stdout
    assert "update" in done.stderr  # the progress bars


def test_the_demo_removes_nothing_but_its_own_output(demo: ModuleType, tmp_path: Path) -> None:
    precious = tmp_path / "out" / "precious"
    precious.parent.mkdir()
    precious.touch()
    with pytest.raises(FileExistsError, match="is not from an earlier demo"):
        demo.prepare(precious.parent)
    assert precious.exists()


def test_the_demo_checks_the_weights(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = demo.installed_minilm()
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 6
    monkeypatch.setattr(demo, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="to have the SHA-256 000"):
        demo.installed_minilm()
    monkeypatch.setattr(demo, "PACKAGE", "no_such_package_here")
    with pytest.raises(ImportError, match="is not installed"):
        demo.installed_minilm()


def test_the_demo_says_what_is_wrong_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "examples" / "demo.py", tmp_path, "--output", tmp_path / "out"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("demo: error: ")
    assert "Traceback" not in done.stderr
