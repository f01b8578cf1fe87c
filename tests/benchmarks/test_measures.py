"""The parts that every benchmark rests on: clock, count of operations, peak, machine, corpus, tables."""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from benchmarks import corpus, devices, report, roofline, timing
from mlx_bert.core import BertCore
from mlx_bert.encoders import ENCODERS

BERT = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 160,
}


def test_operations_of_bert():
    H, I, L = 64, 160, 17
    expected = 3 * L * (8 * H * H + 4 * H * I + 4 * L * H)
    assert roofline.model_flops(BertCore(BERT), [L]) == expected
    assert roofline.model_flops(BertCore(BERT), [L, L]) == 2 * expected


def test_operations_of_modernbert_count_gate_and_window():
    config = {**BERT, "model_type": "modernbert", "local_attention": 8, "num_hidden_layers": 4}
    H, I, L = 64, 160, 30
    layers = [L, 9, 9, L]  # global, local, local, global: 4 tokens to each side and itself
    expected = sum(L * (8 * H * H + 6 * H * I + 4 * seen * H) for seen in layers)
    assert roofline.model_flops(BertCore(config), [L]) == expected


def test_operations_of_shared_and_packed_layers():
    albert = {**BERT, "model_type": "albert", "embedding_size": 32}
    H, I, L = 64, 160, 5
    assert roofline.model_flops(BertCore(albert), [L]) == 3 * L * (8 * H * H + 4 * H * I + 4 * L * H)
    packed = BertCore(BERT)
    plain = roofline.model_flops(packed, [L])
    nn.quantize(packed.encoder, group_size=32, bits=4)
    assert roofline.model_flops(packed, [L]) == plain


def test_more_than_the_peak_is_refused():
    assert roofline.utilisation(50.0, 1.0, 100.0) == 0.5
    with pytest.raises(ValueError, match=r"expected at most the measured peak of 0\.0 GFLOP/s but got 0\.0"):
        roofline.utilisation(103.0, 1.0, 100.0)
    assert roofline.shares_of_peak(50.0, [1.0, 2.0], [100.0, 50.0]) == [0.5, 0.5]
    assert roofline.shares_of_peak(50.0, [1.0, 2.0], [40.0, 50.0]) == [1.25, 0.5]  # a round's own peak may be low
    with pytest.raises(ValueError, match="expected at most the measured peak"):
        roofline.shares_of_peak(50.0, [1.0, 0.5], [90.0, 80.0])


def test_roofline_is_measured():
    measured = roofline.measure(BertCore(BERT).config, tokens=64, count=2)
    assert measured.matmul_flops > 1e8
    assert measured.copy_bytes > 1e7
    assert 0 < measured.empty_seconds < 1


def test_clock():
    calls = []
    assert len(timing.rounds(lambda: calls.append(1), 3, warmup=2)) == 3
    assert len(calls) == 5
    order = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    taken = timing.interleaved(calls, 3, lambda: order.append("first"))
    assert order == ["first", "a", "b", "first", "b", "a", "first", "a", "b"]
    assert [len(each) for each in taken.values()] == [3, 3]
    assert timing.ratios([2, 6, 4], [1, 2, 4]) == {"median": 2, "min": 1, "max": 3}
    assert [timing.percentile([4, 1, 3, 2], share) for share in (0.01, 0.5, 0.75, 0.9, 1)] == [1, 2, 3, 4, 4]


@pytest.mark.parametrize("generation", range(1, 6))
@pytest.mark.parametrize("kind", ["", " Pro", " Max"])
def test_apple_chips_are_known(generation, kind):
    chip = devices.find_chip(f"Apple M{generation}{kind}")
    assert chip.bandwidth_gb_s >= 68
    clock = chip.tflops * 1e3 / (chip.gpu_cores * 128 * 2)  # GHz
    assert 1.2 < clock < 1.8
    assert "TFLOP/s: " in chip.source
    assert "apple.com" in chip.source or "Apple's press release" in chip.source


def test_this_machine(monkeypatch):
    machine = devices.this_machine()
    assert machine.device in ("cpu", "gpu")
    assert machine.cores >= 1
    assert machine.memory_gb > 0.5
    assert machine.versions["mlx"]
    assert devices.find_chip("Intel(R) Xeon(R)") is None
    monkeypatch.setattr(devices.sys, "platform", "darwin")
    answers = {
        "sysctl": "Apple M4 Pro",
        "ioreg": '"gpu-core-count" = 16',
        "pmset": "Now drawing from 'Battery Power'",
    }
    monkeypatch.setattr(devices, "_output", lambda *command: answers[command[0]])
    machine = devices.this_machine()
    assert (machine.processor, machine.gpu_cores, machine.power) == ("Apple M4 Pro", 16, "battery")
    assert (machine.nominal["bandwidth_gb_s"], machine.nominal["gpu_cores"]) == (273, 16)


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("modernbert", {"local_attention": 8}),
        ("gemma3_text", {"sliding_window": 8, "use_bidirectional_attention": True, "head_dim": 8}),
        ("eurobert", {}),
    ],
)
def test_windows_of_local_layers(model_type, settings):
    config = ENCODERS[model_type].Config.from_dict({"model_type": model_type, "num_hidden_layers": 6, **settings})
    kinds = getattr(config, "layer_types", ["full_attention"] * 6)
    expected = [9 if kind == "sliding_attention" else None for kind in kinds]
    assert roofline.layer_windows(config) == expected
    assert (9 in expected) == bool(settings)


@pytest.mark.parametrize(
    ("chip", "cores", "expected"),
    [
        ("Apple M2", 8, (8, 100, 2.9)),
        ("Apple M3 Max", 30, (30, 300, 10.7)),
        ("Apple M2 Max", 30, (30, 400, 10.7)),
        ("Apple M4 Max", 32, (32, 410, 13.8)),
        ("Apple M4 Pro", 16, (16, 273, 6.0)),
        ("Apple M5 Pro", 16, (16, 307, 6.6)),
        ("Apple M4", None, (10, 120, 3.8)),
        ("Apple M4", 10, (10, 120, 3.8)),
    ],
)
def test_chips_with_fewer_cores(chip, cores, expected):
    found = devices.CHIPS[chip].with_cores(cores)
    assert (found.gpu_cores, found.bandwidth_gb_s, found.tflops) == expected


def test_corpus_is_ragged_and_the_same_each_time():
    texts = corpus.ragged_texts(256)
    assert texts == corpus.ragged_texts(256)
    words = np.array([len(text.split()) for text in texts])
    assert 20 <= np.median(words) <= 30
    assert words.max() > 100
    assert words.max() <= 180
    assert words.min() < 8


def test_report_round_trip(tmp_path):
    rows = [{"what": "a", "seconds": 0.12345, "texts/s": 12345.6}, {"what": "bb", "seconds": 2.0, "padding": None}]
    measured = {"matmul_flops": 1e11, "copy_bytes": 1e10, "empty_seconds": 1e-5}
    result = report.build("throughput", {"model": "tiny"}, rows, roofline=measured)
    path = report.save(result, tmp_path / "result.json")
    assert report.load(path) == json.loads(json.dumps(result))
    text = path.with_suffix(".md").read_text()
    assert "### throughput: tiny on the " + mx.default_device().type.name.upper() in text
    assert "100.0 GFLOP/s" in text
    assert "| a    |   0.123 |   12346 |" in text
    assert f"mlx {result['machine']['versions']['mlx']}" in text
    (tmp_path / "other.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match=r"other\.json to be a result of format 1"):
        report.load(tmp_path / "other.json")


def test_default_place_of_results(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    result = report.build("memory", {"model": "org/name"}, [])
    assert report.save(result).name == f"memory-{result['machine']['device']}-org-name.json"
    assert "No rows." in (tmp_path / f"memory-{result['machine']['device']}-org-name.md").read_text()
