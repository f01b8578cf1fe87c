"""Checkpoints that came to the Hub with code of their own: what is converted needs none, and gives the same numbers."""

import mlx.core as mx
import pytest
import transformers
from remote_checkpoints import CONFIGS, older_names

from convert import convert
from mlx_bert.checkpoint import entries_of, read_json, write_json, write_safetensors
from mlx_bert.core import BertCore


@pytest.mark.parametrize("model_type", CONFIGS)
def test_convert(tmp_path, model_type):
    mx.random.seed(0)
    core = BertCore(CONFIGS[model_type]).eval()
    source = tmp_path / "source"
    source.mkdir()
    write_json(source / "config.json", CONFIGS[model_type])
    write_safetensors(source / "model.safetensors", entries_of(older_names(core)))
    convert(source, tmp_path / "out")
    config = read_json(tmp_path / "out" / "config.json")
    assert config["model_type"] == model_type
    ids = mx.array([[5, 6, 7, 8, 9]])
    expected = core(ids).last_hidden_state
    for folder in (source, tmp_path / "out"):
        assert mx.array_equal(BertCore.from_pretrained(folder)(ids).last_hidden_state, expected)
    if model_type != "bert":  # for Jina v2, transformers has no class
        assert "auto_map" not in config
        theirs = transformers.AutoModel.from_pretrained(tmp_path / "out", local_files_only=True)
        assert theirs.config.num_hidden_layers == 2


def test_adapters_survive_conversion(tmp_path):
    mx.random.seed(0)
    core = BertCore(CONFIGS["jina_embeddings_v3"]).eval()
    weights, stem = older_names(core), "encoder.layers.0.mlp.fc1"
    original = weights.pop(f"{stem}.weight")
    a, b = mx.random.normal((2, 4, 32)), mx.random.normal((2, 40, 4))
    weights[f"{stem}.parametrizations.weight.original"] = original
    weights |= {f"{stem}.parametrizations.weight.0.lora_A": a, f"{stem}.parametrizations.weight.0.lora_B": b}
    source = tmp_path / "source"
    source.mkdir()
    write_json(source / "config.json", CONFIGS["jina_embeddings_v3"])
    write_safetensors(source / "model.safetensors", entries_of(weights))
    ids = mx.array([[5, 6, 7, 8, 9]])
    convert(source, tmp_path / "out")
    plain = BertCore.from_pretrained(tmp_path / "out")
    assert mx.array_equal(plain(ids).last_hidden_state, core(ids).last_hidden_state)
    core.encoder.layers[0].mlp.up.weight = original + b[1] @ a[1] / 4
    merged = BertCore.from_pretrained(tmp_path / "out", lora_task="b")
    assert mx.allclose(merged(ids).last_hidden_state, core(ids).last_hidden_state, atol=1e-5)
