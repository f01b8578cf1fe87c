"""Other bits for some matrices, and quantised checkpoints that other MLX tools wrote."""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import transformers
from mlx.utils import tree_flatten

from convert import Quantization, convert, convert_checkpoint
from convert.__main__ import main
from convert.verify import probe_batch
from mlx_bert import BertCore, BertWithHead, Tokenizer
from mlx_bert.checkpoint import entries_of, read_json, write_json, write_safetensors
from reference import redraw, save_word_tokenizer, word_tokenizer

TEXTS = ["the dog is good", "a bad and awful movie today, never again"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A BERT for classification whose rows divide into groups of 64."""
    folder = tmp_path_factory.mktemp("wide")
    config = transformers.BertConfig(
        vocab_size=word_tokenizer().get_vocab_size(),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        num_labels=3,
    )
    redraw(transformers.BertForSequenceClassification(config), std=0.1).save_pretrained(folder)
    save_word_tokenizer(folder)
    return folder


def bits_of(core: BertCore) -> dict[str, int]:
    kinds = (nn.QuantizedLinear, nn.QuantizedEmbedding)
    return {path: module.bits for path, module in core.encoder.named_modules() if isinstance(module, kinds)}


def cosine(a: mx.array, b: mx.array) -> float:
    return float(mx.min(mx.sum(a * b, -1) / mx.linalg.norm(a, axis=-1) / mx.linalg.norm(b, axis=-1)))


def test_embeddings_have_8_bits_at_least(source, tmp_path):
    with pytest.warns(UserWarning, match="lose quality below 8 bits"):
        folder = convert(source, tmp_path / "out", quantization={"bits": 4}, verify=True)
    bits = bits_of(BertCore.from_pretrained(folder))
    assert {path for path, value in bits.items() if value == 8} == {
        "embeddings.word",
        "embeddings.position",
        "embeddings.token_type",
    }
    assert {value for path, value in bits.items() if path.startswith("layers")} == {4}
    entry = read_json(folder / "config.json")["quantization"]
    assert entry["bits"] == 4
    assert entry["bert.embeddings.word_embeddings"] == {"mode": "affine", "bits": 8, "group_size": 64}


def test_overrides_by_name(source, tmp_path):
    overrides = {"layer": 4, r"layer\.1": 6, "intermediate": None}
    with pytest.warns(UserWarning, match="lose quality"):
        folder = convert(source, tmp_path / "out", quantization={"bits": 4, "overrides": overrides}, verify=True)
    core = BertCore.from_pretrained(folder)
    bits = bits_of(core)
    assert bits["layers.0.attention.qkv"] == 4
    assert bits["layers.1.attention.qkv"] == bits["layers.1.mlp.down"] == 6
    assert "layers.0.mlp.up" not in bits
    batch = Tokenizer.from_pretrained(folder)(TEXTS)
    plain = BertCore.from_pretrained(source)
    assert cosine(core(*batch).mean_pooled, plain(*batch).mean_pooled) > 0.95
    core.save_pretrained(tmp_path / "again")
    assert bits_of(BertCore.from_pretrained(tmp_path / "again")) == bits
    floating = convert_back(folder, tmp_path / "floating")
    assert bits_of(BertCore.from_pretrained(floating)) == {}


def convert_back(folder, output):
    assert main([str(folder), "--dequantize", "--output", str(output), "--quiet"]) == 0
    return output


def test_floating_modes_keep_embeddings_in_8_bits(source, tmp_path):
    with pytest.warns(UserWarning, match="lose quality"):
        folder = convert(source, tmp_path / "out", quantization={"mode": "mxfp4"}, verify=True)
    core = BertCore.from_pretrained(folder)
    assert (core.encoder.embeddings.word.mode, core.encoder.embeddings.word.bits) == ("mxfp8", 8)
    assert (core.encoder.layers[0].mlp.up.mode, core.encoder.layers[0].mlp.up.bits) == ("mxfp4", 4)


def test_command_line(source, tmp_path, capsys):
    given = ["-q", "--q-override", "embeddings=float", "--q-override", r"layer\.1\.=4"]
    assert main([str(source), "--output", str(tmp_path / "out"), *given]) == 0
    bits = bits_of(BertCore.from_pretrained(tmp_path / "out"))
    assert (bits["layers.0.mlp.up"], bits["layers.1.mlp.up"]) == (8, 4)
    assert "embeddings.word" not in bits
    for wrong, message in (
        ("layer", "expected --q-override REGEX=BITS"),
        ("layer=7", "expects bits to be 2 or 3 or 4 or 5 or 6 or 8"),
        ("(=4", "is not a regular expression"),
        ("query=4", "which are one matrix in memory"),
    ):
        assert main([str(source), "--output", str(tmp_path / "no"), "-q", "--q-override", wrong]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "no").exists()


def test_the_report_says_what_quantising_did(source, tmp_path):
    with pytest.warns(UserWarning, match="lose quality"):
        report = convert_checkpoint(source, tmp_path / "out", quantization={"bits": 4}, verify=True)
    assert set(report.table) == {"affine 8 bits", "affine 4 bits", "floating"}
    assert sum(row.after for row in report.table.values()) == report.bytes_after
    assert sum(row.before for row in report.table.values()) == report.bytes_before
    row = report.table["affine 4 bits"]
    assert row.number == 12
    assert row.after * 8 / row.weights == 5.0  # 4 bits, and a scale and a bias of 32 bits for each 64 weights
    ours, theirs = BertWithHead.from_pretrained(tmp_path / "out"), BertWithHead.from_pretrained(source)
    probes = probe_batch(tmp_path / "out", theirs.bert.config)
    change = float(mx.max(mx.abs(ours(*probes)["logits"] - theirs(*probes)["logits"])))
    assert change > 0
    assert report.logit == pytest.approx(change, rel=1e-3)
    assert f"largest change of a logit {report.logit:.4f}" in str(report)
    assert "affine 4 bits        12             5.00" in str(report)


def test_the_last_override_that_matches_counts():
    quantization = Quantization(bits=8, overrides={"a": 4, "ab": None})
    assert quantization.of_matrix("a.weight", False).bits == 4
    assert quantization.of_matrix("ab.weight", False) is None
    assert quantization.of_matrix("c.weight", True).bits == 8


def other_tools_checkpoint(source, folder, **options) -> None:
    """As mlx-embeddings and mlx-lm write: every linear layer and embedding table quantised, heads and poolers too."""
    folder.mkdir()
    weights = mx.load(str(source / "model.safetensors"))
    packed = {}
    for name, array in weights.items():
        if array.ndim == 2 and array.shape[-1] % 64 == 0:
            parts = mx.quantize(array, **options)
            stem = name.removesuffix(".weight")
            packed |= dict(zip((f"{stem}.weight", f"{stem}.scales", f"{stem}.biases"), parts, strict=False))
        else:
            packed[name] = array
    write_safetensors(folder / "model.safetensors", entries_of(packed))
    config = json.loads((source / "config.json").read_text())
    write_json(folder / "config.json", {**config, "quantization": options, "quantization_config": options})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())


def test_quantised_checkpoints_of_other_tools_load(source, tmp_path):
    other_tools_checkpoint(source, tmp_path / "other", group_size=64, bits=8)
    batch = Tokenizer.from_pretrained(source)(TEXTS)
    core = BertCore.from_pretrained(tmp_path / "other")
    assert isinstance(core.encoder.pooler.dense, nn.QuantizedLinear)
    plain = BertCore.from_pretrained(source)
    assert cosine(core(*batch).pooler_output, plain(*batch).pooler_output) > 0.99
    head = BertWithHead.from_pretrained(tmp_path / "other")
    assert {array.dtype for _, array in tree_flatten(head.head.parameters())} == {mx.float32}
    difference = np.array(head(*batch)["logits"]) - np.array(BertWithHead.from_pretrained(source)(*batch)["logits"])
    assert np.abs(difference).max() < 0.05
    floating = convert_back(tmp_path / "other", tmp_path / "floating")
    transformers.AutoModelForSequenceClassification.from_pretrained(floating)
