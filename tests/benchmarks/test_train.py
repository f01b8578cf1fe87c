"""The training benchmark on a tiny model: its rows, what each way trains, and the equality with torch."""

import json

import numpy as np
import pytest

from benchmarks import train
from benchmarks.__main__ import main
from mlx_bert.data.collate import token_count
from mlx_bert.tokenizer import Tokenizer

TORCH = "torch, full"


@pytest.fixture(scope="module")
def result(tiny_bert_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("train") / "result.json"
    command = ["train", "--model", str(tiny_bert_folder), "--texts", "10", "--batch-size", "4", "--rounds", "2"]
    assert main([*command, "--epochs", "4", "--peer", "torch", "--output", str(path)]) == 0
    return json.loads(path.read_text())


def test_rows(result):
    rows = {row["what"]: row for row in result["rows"]}
    with_pass = "frozen, cached, with the pass in 4 epochs"
    ours = ["full", "full, gradient checkpointing", "LoRA", "frozen", train.PASS, "frozen, cached"]
    assert list(rows) == [*ours, TORCH, with_pass]
    numbers = [value for row in rows.values() for value in row.values() if isinstance(value, int | float)]
    assert np.isfinite(numbers).all()
    assert rows["full"]["times full"] == 1
    assert all(rows[name]["peak MB"] > 0 for name in ours)
    assert rows["frozen, cached"]["peak MB"] < rows["full"]["peak MB"]  # no gradients and states of the encoder
    assert all(0 < rows[name]["of peak"] < 1 for name in ours[:-1])
    assert rows["frozen, cached"]["of peak"] is None
    assert rows[with_pass]["seconds"] > rows["frozen, cached"]["seconds"]
    assert result["settings"]["texts"] == 10
    assert "CPU threads" in result["note"]
    assert rows["full"]["tokens/s"] / rows["full"]["samples/s"] == pytest.approx(result["settings"]["tokens"] / 10)


def test_bfloat16_is_a_way_of_its_own_on_a_gpu_only(monkeypatch):
    import mlx.core as mx

    assert "full, bfloat16" not in train.chosen_ways("float32", "*.qkv")
    monkeypatch.setattr(train.mx, "default_device", lambda: mx.Device(mx.gpu))
    ways = train.chosen_ways("float32", "*.qkv")
    assert ways["full, bfloat16"]["dtype"] == "bfloat16"
    assert ways["LoRA"] == {"dtype": "float32", "lora": "*.qkv"}
    assert "full, bfloat16" not in train.chosen_ways("bfloat16", "*.qkv")


def test_torch_that_computes_something_else_is_not_timed(tiny_bert_folder, monkeypatch):
    tokenizer = Tokenizer.from_pretrained(tiny_bert_folder)
    examples = train.labelled(tokenizer, 6, 64)
    assert max(token_count(example) for example in examples) <= 64
    real = train.new_model

    def scaled(folder):
        model = real(folder)
        model.bert.encoder.embeddings.norm.weight *= 2
        return model

    train.torch_way(str(tiny_bert_folder), tokenizer, examples, 4, 1)
    monkeypatch.setattr(train, "new_model", scaled)
    with pytest.raises(ValueError, match="expected torch's first logits to be ours"):
        train.torch_way(str(tiny_bert_folder), tokenizer, examples, 4, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dtype", "float16"], "float32 or bfloat16 for training but got float16"),
        (["--texts", "0"], "--texts of at least 1"),
    ],
)
def test_bad_options(tiny_bert_folder, options, message, capsys):
    assert main(["train", "--model", str(tiny_bert_folder), *options]) == 2
    assert message in capsys.readouterr().err
