"""The protocol that other engines' scripts speak."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.peers import FOLDER, REQUIREMENTS
from benchmarks.peers.protocol import in_batches, pools_first_token

ENGINE = """
from protocol import Engine, in_batches, serve

def load(args):
    print("a library's chatter")
    forward = lambda batch: [[len(text), len(batch)] for text in batch]
    return Engine(lambda inputs: in_batches(inputs, args.batch_size, args.sort, forward), {"engine": "lengths"})

serve(load)
"""


def talk(tmp_path, asked, texts=("a", "ccc", "bb"), *options):
    """What a script answers to each line; its input ends after the last answer."""
    script, source, out = tmp_path / "engine.py", tmp_path / "texts.json", tmp_path / "out.npy"
    script.write_text(ENGINE)
    source.write_text(json.dumps(texts))
    command = [sys.executable, str(script), "--model", ".", "--texts", str(source), "--out", str(out), *options]
    environment = os.environ | {"PYTHONPATH": str(FOLDER)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        said = [process.stdout.readline()]
        for line in asked:
            print(line, file=process.stdin, flush=True)
            said.append(process.stdout.readline())
        if "error" in said[-1]:
            process.wait(20)  # it ends by itself
        process.stdin.close()
    return process.returncode, [json.loads(line) for line in said], out


def test_a_script_reports_once_and_then_times_on_request(tmp_path):
    code, said, out = talk(tmp_path, ["encode", "encode"], ("a", "ccc", "bb"), "--sort", "--batch-size", "2")
    assert code == 0
    assert said[0] == {"ready": True, "engine": "lengths"}
    assert [set(line) for line in said[1:]] == [{"seconds", "cpu_seconds"}] * 2
    np.testing.assert_array_equal(np.load(out), [[1, 1], [3, 2], [2, 2]])


def test_a_script_says_what_went_wrong(tmp_path):
    code, said, _ = talk(tmp_path, ["go"])
    assert code == 1
    assert "expected the line 'encode' but got 'go'" in said[-1]["error"]


def test_batches_come_back_in_order():
    seen = []

    def forward(batch):
        seen.append(list(batch))
        return [[len(text)] for text in batch]

    np.testing.assert_array_equal(in_batches(["a", "bbb", "cc"], 2, True, forward)[:, 0], [1, 3, 2])
    assert seen == [["bbb", "cc"], ["a"]]
    in_batches(["a", "bbb", "cc"], 2, False, forward)
    assert seen[2:] == [["a", "bbb"], ["cc"]]


def test_pooling_is_read_from_the_folder(tmp_path):
    assert not pools_first_token(str(tmp_path))
    config = tmp_path / "1_Pooling" / "config.json"
    config.parent.mkdir()
    for settings, first in (
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, True),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, False),
        ({"pooling_mode": "cls"}, True),
        ({"pooling_mode": "mean"}, False),
    ):
        config.write_text(json.dumps(settings))
        assert pools_first_token(str(tmp_path)) is first
    config.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ValueError, match="expected mean or first-token pooling"):
        pools_first_token(str(tmp_path))


def test_every_engine_has_a_script():
    assert {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "protocol", "client"} == set(REQUIREMENTS)
