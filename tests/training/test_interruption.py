"""Runs in processes of their own that are killed, stopped by Ctrl-C, and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mlx_bert.__main__ import main
from mlx_bert.training.checkpoints import remove_partial_files

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def train_file(tmp_path_factory):
    words, things = ("good", "bad", "old"), ("dog", "cat", "tree", "book")
    texts = [f"the {words[n % 3]} {things[n % 4]} is here " * (1 + n % 2) for n in range(48)]
    rows = [{"text": text, "label": words[n % 3]} for n, text in enumerate(texts)]
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# A head that learns embeddings, as measuring it needs no scikit-learn, which takes seconds to import.
SETTINGS = (
    "--task contrastive --epochs 3 --batch-size 4 --save-every 2 --learning-rate 1e-3 --metric loss --no-progress"
)


def arguments_of(folder, data, output, *more):
    paths = ["--model", str(folder), "--train", str(data), "--eval", str(data), "--output", str(output)]
    return ["train", *paths, *SETTINGS.split(), *more]


def start(*arguments):
    """A run in a process of its own, which can be killed."""
    command = [sys.executable, "-m", "mlx_bert", *arguments_of(*arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*arguments):
    """A run in this process, which starts sooner than another one."""
    assert main(arguments_of(*arguments)) == 0


def wait_for(path, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not list(path.glob("checkpoint_*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.01)


def weights(output, model="final_model"):
    folders = (output / model / "bert", output / model / "head")
    return {f"{f.name}.{name}": array for f in folders for name, array in load_file(f / "model.safetensors").items()}


@pytest.fixture(scope="module")
def uninterrupted(tiny_bert_folder, train_file, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "run"
    finish(tiny_bert_folder, train_file, output)
    return output


def assert_equal_runs(first, second):
    for model in ("best_model", "final_model"):
        expected, found = weights(first, model), weights(second, model)
        assert expected.keys() == found.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_half_written_files_of_a_killed_run_go_away(tmp_path):
    (tmp_path / ".checkpoint_4.abc").mkdir()
    (tmp_path / ".best_state.safetensors.xyz").write_text("half")
    (tmp_path / ".mine").write_text("kept")
    remove_partial_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".mine"]


def test_a_killed_run_resumes_exactly(tiny_bert_folder, train_file, uninterrupted, tmp_path):
    output = tmp_path / "run"
    process = start(tiny_bert_folder, train_file, output)
    wait_for(output, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (output / "final_model").exists()
    finish(tiny_bert_folder, train_file, output, "--resume")
    assert_equal_runs(uninterrupted, output)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_says_how_to_go_on_and_resumes_exactly(
    tiny_bert_folder, train_file, uninterrupted, tmp_path, number
):
    output = tmp_path / "run"
    process = start(tiny_bert_folder, train_file, output)
    wait_for(output, process)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Continue with the same command and --resume" in errors
    assert "Traceback" not in errors
    finish(tiny_bert_folder, train_file, output, "--resume")
    assert_equal_runs(uninterrupted, output)
