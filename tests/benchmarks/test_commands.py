"""``python -m benchmarks`` as a whole, on a tiny model."""

import json
import re
import subprocess
import sys
from collections import Counter

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from benchmarks import compare, corpus, latency, models, roofline
from benchmarks.__main__ import VERBS, main, parse
from mlx_bert.core import BertCore
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.tokenizer import Tokenizer

SMALL = {
    "throughput": ["--texts", "12", "--rounds", "2", "--types", "float32", "8bit"],
    "latency": ["--calls", "2", "--rounds", "2", "--lengths", "8", "512", "--types", "float32", "8bit"],
    "memory": ["--calls", "20", "--converting", "60"],
    "load": ["--rounds", "2"],
    "compare": ["--texts", "12", "--rounds", "2"],
}


@pytest.mark.parametrize("verb", SMALL)
def test_each_command(tiny_bert_folder, tmp_path, verb, capsys):
    output = tmp_path / "result.json"
    assert main([verb, "--model", str(tiny_bert_folder), "--output", str(output), *SMALL[verb]]) == 0
    result = json.loads(output.read_text())
    assert capsys.readouterr().out.strip() == output.with_suffix(".md").read_text().strip()
    assert result["settings"]["model"] == tiny_bert_folder.name
    rows = result["rows"]
    numbers = [value for row in rows for value in row.values() if isinstance(value, int | float)]
    assert np.isfinite(numbers).all()
    if verb == "throughput":
        assert [(row["what"], row["type"]) for row in rows] == [
            ("ragged, 12 texts", "float32"),
            ("ragged, 12 texts", "8bit"),
        ]
        assert all(0 < row["least"] <= row["of peak"] <= row["most"] for row in rows)
        assert [sorted(peaks) for peaks in result["matmul_gflops_of_rounds"]] == [["8bit", "float32"]] * 2
        assert 0 <= rows[0]["padding"] < 0.5
    if verb == "latency":
        assert [(row["tokens"], row["type"]) for row in rows] == [
            (8, "float32"),
            (8, "8bit"),
        ]
        assert all(0 < row["p50"] <= row["p90"] <= row["p99"] for row in rows)
        assert all(row["first ms"] > 0 and 0 < row["of peak"] <= 1 for row in rows)
        assert result["roofline"]["matmul_flops"] > max(row["GFLOP/s"] for row in rows) * 1e9
    if verb == "memory":
        calls = [row for row in rows if "calls" in row]
        assert calls[-1]["calls"] == 20
        assert calls[-1]["active MB"] <= calls[0]["active MB"] + 0.1
        stored, half, packed = [row for row in rows if "converting" in row]
        assert stored["source MB"] == stored["result MB"] > 50
        assert half["result MB"] == pytest.approx(stored["source MB"] / 2, rel=0.01)
        assert packed["result MB"] < half["result MB"]
        assert all(row["growth MB"] < 60 for row in (stored, half, packed))
    if verb == "load":
        assert [row["what"] for row in rows][:2] == ["load, first", "load, again"]
        assert {"import mlx_bert", "mlx-bert --help"} <= {row["what"] for row in rows}
        assert all(0 < row["GB/s"] < 1000 and row["peak over file"] > 0.9 for row in rows[:2])
        assert result["roofline"]["copy_bytes"] > 0
    if verb == "compare":
        names = [row["engine"] for row in rows]
        assert names[0] == "mlx-bert"
        assert names[-1] == "sentence-transformers"
        assert rows[0]["mlx-bert is faster by"] == 1
        assert all(0 < row["of peak"] <= 1 for row in rows)
        assert result["roofline"]["matmul_flops"] > max(row["GFLOP/s"] for row in rows) * 1e9


def test_switches_really_switch(tiny_bert_folder, monkeypatch):
    """Each engine of the comparison takes another way, and all agree."""
    encoder = SentenceEncoder.from_pretrained(tiny_bert_folder)
    seen = []
    original = compare.cpu._gelu
    monkeypatch.setattr(compare.cpu, "_gelu", lambda *arrays: seen.append("gelu") or original(*arrays))
    engines = compare.ours(encoder, corpus.ragged_texts(12), 4)
    outputs = {}
    for name, engine in engines.items():
        seen.clear()
        outputs[name] = engine()
        # A graph runs without Python.
        assert ("gelu" in seen) == (name not in ("without CPU GELU and softmax", "encoder as compiled graphs")), name
    compare.check_equal(outputs)


@pytest.mark.parametrize(("rows", "pieces", "parts"), [(1, 1, 2), (5, 3, 4)])
def test_switches_of_fixed_shapes(rows, pieces, parts, tiny_bert_folder, monkeypatch):
    """A piece alone is spread over the cores, others take a core each; each switch has its effect, and all agree."""
    config = {"model_type": "modernbert", "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 4}
    config |= {"num_attention_heads": 2, "intermediate_size": 24, "local_attention": 4, "max_position_embeddings": 64}
    encoder = SentenceEncoder(BertCore(config).eval(), Tokenizer.from_pretrained(tiny_bert_folder))
    inputs = compare.token_rows(encoder, rows, 32)
    monkeypatch.setattr(compare.batching, "CPU_BUDGET", 64)
    monkeypatch.setattr(compare.cpu, "SPREAD_FROM", 32)
    streams = [mx.default_stream(mx.cpu), mx.new_stream(mx.cpu)]
    monkeypatch.setattr(compare.batching, "compute_streams", lambda: streams)
    seen = Counter()

    def watch(module, name):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *x, **o: seen.update([name]) or original(*x, **o))

    watch(compare.cpu, "_gelu")
    watch(compare.modernbert, "attend_in_blocks")
    monkeypatch.setattr(nn.Linear, "__call__", watched(seen, nn.Linear.__call__))
    outputs, counts = {}, {}
    for name, engine in compare.engines_of(encoder, lambda: compare.fixed(encoder, inputs)).items():
        seen.clear()
        outputs[name], counts[name] = engine(), seen.copy()
    compare.check_equal(outputs)
    whole = counts["mlx-bert"]
    assert whole["linear"] == 4 * 4 * parts
    assert counts["on one CPU stream"]["linear"] == 4 * 4 * pieces
    assert counts["large batches"]["linear"] == 4 * 4 * 2  # a single batch, spread
    assert whole["_gelu"] == whole["linear"] / 4
    assert counts["without CPU GELU and softmax"]["_gelu"] == 0
    assert whole["attend_in_blocks"] > 0
    assert counts["local attention among all tokens"]["attend_in_blocks"] == 0


def watched(seen, call):
    return lambda layer, x: seen.update(["linear"]) or call(layer, x)


def test_engines_that_differ_are_not_timed():
    with pytest.raises(ValueError, match="expected other to agree"):
        compare.check_equal({"mlx-bert": np.eye(3), "other": np.ones((3, 3))})


def test_the_default_is_throughput():
    assert parse(["--texts", "3"]).verb == "throughput"
    assert parse([]).texts == 256


def test_help_and_errors():
    result = subprocess.run([sys.executable, "-m", "benchmarks", "--help"], capture_output=True, text=True, check=True)
    assert all(verb in result.stdout for verb in VERBS)
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks", "latency", "--model", "./nowhere"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "nowhere" in result.stderr


def test_latency_of_made_up_weights(tmp_path, tiny_bert_folder, monkeypatch):
    config = {"model_type": "bert", "vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "intermediate_size": 64}
    monkeypatch.setitem(models.ARCHITECTURES, "tiny", config)
    monkeypatch.setattr(models, "find_model", lambda _: str(tiny_bert_folder))  # its tokenizer
    monkeypatch.setattr(latency, "first_call", lambda *_: 1.0)  # another process would not know the architecture
    output = tmp_path / "r.json"
    command = ["latency", "--architecture", "tiny", "--calls", "1", "--rounds", "1", "--lengths", "16", "8", "16"]
    assert main([*command, "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert result["settings"]["model"] == "tiny"
    assert [(row["tokens"], row["first ms"]) for row in result["rows"]] == [(8, 1000), (16, 1000)]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["latency", "--rounds", "0"], r"expected --rounds of at least 1 but got 0"),
        (["latency", "--calls", "0"], r"expected --calls of at least 1 but got 0"),
        (["latency", "--lengths", "999"], r"expected --lengths up to 64, all that the model takes"),
        (["load", "--rounds", "0"], r"expected --rounds of at least 1 but got 0"),
        (["throughput", "--rounds", "0"], r"expected --rounds of at least 1 but got 0"),
        (["compare", "--rounds", "0"], r"expected --rounds of at least 1 but got 0"),
    ],
)
def test_options_out_of_bounds(tiny_bert_folder, capsys, command, message):
    assert main([*command, "--model", str(tiny_bert_folder)]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_more_than_the_peak_is_refused(tiny_bert_folder, monkeypatch, capsys):
    monkeypatch.setattr(roofline, "matmul_peak", lambda *_, **__: 1.0)
    monkeypatch.setattr(latency, "first_call", lambda *_: 1.0)
    for verb, options in {
        "latency": ["--lengths", "8"],
        "throughput": ["--texts", "4"],
        "compare": ["--shape", "1x8", "--peer", "none"],
    }.items():
        assert main([verb, "--rounds", "1", "--model", str(tiny_bert_folder), *options]) == 2
        assert "expected at most the measured peak" in capsys.readouterr().err
