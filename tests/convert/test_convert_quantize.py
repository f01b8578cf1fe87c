"""Quantised conversions: what is packed, how well, and the way back."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import tiny_config
from transformers import BertForSequenceClassification

from convert import Quantization, convert, convert_checkpoint
from convert.quantize import MODES
from mlx_bert.core import BertCore
from reference import redraw

IDS = mx.array([[2, 9, 14, 7, 3]])


@pytest.mark.parametrize(
    ("mode", "bits", "group_size"), [("affine", 8, 64), ("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]
)
def test_defaults_of_each_mode(mode, bits, group_size):
    assert Quantization(mode).to_dict() == {"mode": mode, "bits": bits, "group_size": group_size}


def test_all_modes_are_known_to_mlx():
    for mode, allowed in MODES.items():
        for bits in allowed.bits:
            for group_size in allowed.group_sizes:
                mx.eval(mx.quantize(mx.ones((4, 128)), mode=mode, bits=bits, group_size=group_size))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "int8"}, "expected mode to be one of affine, mxfp4, mxfp8, nvfp4 but got 'int8'"),
        ({"mode": "mxfp4", "bits": 8}, "mode 'mxfp4' expects bits to be 4 but got 8"),
        ({"mode": "mxfp8", "group_size": 64}, "mode 'mxfp8' expects group_size to be 32 but got 64"),
        ({"mode": "nvfp4", "group_size": 32}, "expects group_size to be 16 but got 32"),
        ({"bits": 7}, "expects bits to be 2 or 3 or 4 or 5 or 6 or 8 but got 7"),
        ({"bits": "8"}, "but got '8'"),
        ({"group_size": 16}, "expects group_size to be 32 or 64 or 128 but got 16"),
    ],
)
def test_wrong_combinations(options, message):
    with pytest.raises(ValueError, match=message):
        Quantization(**options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:.*below 8 bits")
def test_packs_matrices_only_and_loads(bert_folder, tmp_path, mode):
    report = convert_checkpoint(bert_folder, tmp_path / "out", quantization={"mode": mode, "group_size": None})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    tables = [f"embeddings.{name}_embeddings" for name in ("word", "position", "token_type")]
    kept_at_8 = {} if Quantization(mode).bits == 8 else dict.fromkeys(tables, Quantization("mxfp8").to_dict())
    assert config["quantization"] == {**Quantization(mode).to_dict(), **kept_at_8}
    weights = mx.load(str(tmp_path / "out" / "model.safetensors"))
    packed = {name.removesuffix(".scales") for name in weights if name.endswith(".scales")}
    layers = [f"encoder.layer.{n}." for n in range(2)]
    groups = Quantization(mode).group_size
    fitting = [
        *tables,
        *(f"{layer}attention.self.{name}" for layer in layers for name in ("query", "key", "value")),
        *(f"{layer}{name}" for layer in layers for name in ("attention.output.dense", "intermediate.dense")),
    ]
    divisible = [f"{layer}output.dense" for layer in layers]  # 96 columns
    assert packed == {*fitting, *(divisible if 96 % groups == 0 else [])}
    assert report.left_floating == ([] if 96 % groups == 0 else [f"{name}.weight" for name in divisible])
    assert all(weights[f"{name}.weight"].dtype == mx.uint32 for name in packed)
    assert weights["pooler.dense.weight"].dtype == mx.float32
    assert weights["embeddings.LayerNorm.weight"].dtype == mx.float32
    ours, exact = (BertCore.from_pretrained(path)(IDS).last_hidden_state for path in (tmp_path / "out", bert_folder))
    cosine = mx.sum(ours * exact) / mx.linalg.norm(ours) / mx.linalg.norm(exact)
    assert cosine.item() > (0.999 if Quantization(mode).bits == 8 and mode == "affine" else 0.85)


def test_rows_are_quantised_as_mlx_does(bert_folder, tmp_path):
    convert(bert_folder, tmp_path / "out", quantization=Quantization())
    source = mx.load(str(bert_folder / "model.safetensors"))["embeddings.word_embeddings.weight"]
    written = mx.load(str(tmp_path / "out" / "model.safetensors"))
    for part, array in zip(("weight", "scales", "biases"), mx.quantize(source, bits=8, group_size=64), strict=True):
        assert mx.array_equal(written[f"embeddings.word_embeddings.{part}"], array).item()


def test_cast_comes_before_quantising(bert_folder, tmp_path):
    convert(bert_folder, tmp_path / "out", dtype="float16", quantization=Quantization())
    written = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert written["encoder.layer.0.intermediate.dense.scales"].dtype == mx.float16
    assert written["encoder.layer.0.intermediate.dense.bias"].dtype == mx.float16


def test_heads_stay_floating(tmp_path):
    model = redraw(BertForSequenceClassification(tiny_config(num_labels=3)))
    model.save_pretrained(tmp_path / "in")
    report = convert_checkpoint(tmp_path / "in", tmp_path / "out", quantization=Quantization(), verify=True)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(weights["classifier.weight"], model.classifier.weight)
    assert torch.equal(weights["bert.pooler.dense.weight"], model.bert.pooler.dense.weight)
    assert "bert.encoder.layer.0.attention.self.query.scales" in weights
    assert report.cosine > 0.999


def test_verify_reports_cosine_and_error(bert_folder, tmp_path):
    report = convert_checkpoint(bert_folder, tmp_path / "out", quantization=Quantization(), verify=True)
    assert 0.999 < report.cosine < 1.0
    assert 0 < report.error < 0.02
    assert "against the unquantised model: smallest cosine 0.999" in str(report)
    with pytest.warns(UserWarning, match="encoders lose quality below 8 bits"):
        coarse = convert_checkpoint(bert_folder, tmp_path / "coarse", quantization=Quantization(bits=4), verify=True)
    assert coarse.cosine < report.cosine
    assert coarse.error > report.error
    assert coarse.bytes_after < report.bytes_after


def test_nothing_to_quantise(tmp_path):
    model = BertForSequenceClassification(tiny_config(hidden_size=40, intermediate_size=40))
    model.save_pretrained(tmp_path / "in")
    with pytest.raises(ValueError, match="no matrix has rows that divide into groups of 64"):
        convert(tmp_path / "in", tmp_path / "out", quantization=Quantization())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:.*below 8 bits")
def test_dequantize(bert_folder, tmp_path, mode):
    convert(bert_folder, tmp_path / "packed", quantization=Quantization(mode))
    convert_checkpoint(tmp_path / "packed", tmp_path / "out", dtype="float32", dequantize=True, verify=True)
    source, result = (load_file(path / "model.safetensors") for path in (bert_folder, tmp_path / "out"))
    assert {name: tensor.shape for name, tensor in source.items()} == {k: v.shape for k, v in result.items()}
    for name, tensor in source.items():
        error = (tensor - result[name]).norm() / tensor.norm()
        assert error < (0.02 if mode == "affine" else 0.2), name
    assert "quantization" not in json.loads((tmp_path / "out" / "config.json").read_text())
    packed, plain = (BertCore.from_pretrained(tmp_path / name)(IDS).last_hidden_state for name in ("packed", "out"))
    np.testing.assert_allclose(
        np.array(packed.astype(mx.float32)), np.array(plain), atol=1e-4 if mode == "affine" else 0.5
    )


def test_a_quantised_source_needs_dequantize(bert_folder, tmp_path, edit_json):
    packed = convert(bert_folder, tmp_path / "packed", quantization=Quantization())
    with pytest.raises(ValueError, match="is quantised already"):
        convert(packed, tmp_path / "out")
    with pytest.raises(ValueError, match="--dequantize expects a quantised checkpoint"):
        convert_checkpoint(bert_folder, tmp_path / "out", dequantize=True)
    edit_json(packed / "config.json", quantization={"bits": 4, "group_size": 64, "mode": "affine"})
    with pytest.raises(ValueError, match="does not fit"):
        convert_checkpoint(packed, tmp_path / "out", dequantize=True)
    edit_json(packed / "config.json", quantization=None)
    with pytest.raises(ValueError, match=r"config\.json has no 'quantization'"):
        convert_checkpoint(packed, tmp_path / "out", dequantize=True)


def test_dequantize_a_broken_file(bert_folder, tmp_path):
    packed = convert(bert_folder, tmp_path / "packed", quantization=Quantization())
    path = Path(packed) / "model.safetensors"
    weights = load_file(path)
    name = "encoder.layer.0.intermediate.dense.weight"
    save_file({k: v for k, v in weights.items() if k != name}, path)
    with pytest.raises(ValueError, match=r"intermediate\.dense\.scales' has no 'encoder"):
        convert_checkpoint(packed, tmp_path / "out", dequantize=True)
    save_file({**weights, name: torch.ones(3)}, path)
    with pytest.raises(ValueError, match="to be a packed matrix but got"):
        convert_checkpoint(packed, tmp_path / "out", dequantize=True)


def test_requantise(bert_folder, tmp_path):
    """From one quantisation to another in one step."""
    packed = convert(bert_folder, tmp_path / "packed", quantization=Quantization())
    convert_checkpoint(packed, tmp_path / "out", dequantize=True, quantization=Quantization("mxfp8"), verify=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]["mode"] == "mxfp8"
