"""Checkpoints with the names and keys of an architecture's own code become ones that transformers' class reads."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, JinaEmbeddingsV3Config, JinaEmbeddingsV3Model, NomicBertConfig, NomicBertModel

from convert import Quantization, convert, convert_checkpoint
from mlx_bert.core import BertCore
from reference import redraw

SIZES = {"vocab_size": 60, "max_position_embeddings": 64}
SIZES |= {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IDS = torch.tensor([[5, 6, 7, 8, 9]])
TASKS = ["retrieval.query", "separation"]
NOMIC = (("emb_ln", "embeddings.LayerNorm"), ("fc11", "up_proj"), ("fc12", "gate_proj"), ("mlp.fc2", "mlp.down_proj"))
NORMS = (("norm1", "post_attention_layernorm"), ("norm2", "post_mlp_layernorm"))


def older(model: torch.nn.Module, pairs, attention: str) -> dict[str, torch.Tensor]:
    """The state of a model of transformers under the names of the original code."""
    weights = {}
    for name, tensor in model.state_dict().items():
        name = f"encoder.{name}" if name.startswith("layers.") else name
        for old, new in (*pairs, *NORMS, (f"{attention}.out_proj", "self_attn.o_proj")):
            name = name.replace(new, old)
        weights[name] = tensor
    for layer in range(SIZES["num_hidden_layers"]):
        for kind in ("weight", "bias"):
            stem = f"encoder.layers.{layer}"
            parts = [weights.pop(f"{stem}.self_attn.{part}_proj.{kind}", None) for part in "qkv"]
            if parts[0] is not None:
                weights[f"{stem}.{attention}.Wqkv.{kind}"] = torch.cat(parts)
    return weights


@pytest.fixture
def nomic(tmp_path):
    model = redraw(NomicBertModel(NomicBertConfig(**SIZES, rope_theta=1000.0)))
    folder = tmp_path / "nomic"
    folder.mkdir()
    config = {"model_type": "nomic_bert", "n_embd": 64, "n_head": 4, "n_layer": 2, "n_inner": 64, "n_positions": 64}
    config |= {"vocab_size": 60, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "activation_function": "swiglu"}
    config |= {"auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {f"bert.{name}": tensor for name, tensor in older(model, NOMIC, "attn").items()}
    save_file(weights | {"cls.predictions.bias": torch.zeros(60)}, folder / "model.safetensors")
    return model, folder


def test_nomic_loads_in_transformers(nomic, tmp_path):
    model, folder = nomic
    report = convert_checkpoint(folder, tmp_path / "out", verify=True)
    assert report.strangers == []
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "auto_map" not in config
    assert config["hidden_size"] == 64
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert "nomic_bert.layers.0.self_attn.q_proj.weight" in names
    assert "cls.predictions.bias" in names
    again = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert isinstance(again, NomicBertModel)
    with torch.no_grad():
        assert torch.equal(again(IDS).last_hidden_state, model.eval()(IDS).last_hidden_state)


def test_nomic_quantised(nomic, tmp_path):
    model, folder = nomic
    report = convert_checkpoint(folder, tmp_path / "out", quantization=Quantization(), verify=True)
    assert report.cosine > 0.99
    assert report.left_floating == []
    ours = BertCore.from_pretrained(tmp_path / "out")(mx.array(IDS.numpy())).last_hidden_state
    with torch.no_grad():
        expected = model.eval()(IDS).last_hidden_state.numpy()
    assert np.corrcoef(np.array(ours).ravel(), expected.ravel())[0, 1] > 0.99


def test_missing_tensor_of_the_older_spelling(nomic, tmp_path):
    _, folder = nomic
    weights = load_file(folder / "model.safetensors")
    weights.pop("bert.encoder.layers.1.norm1.weight")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing layers\.1\.post_attention_layernorm\.weight \(64,\)"):
        convert(folder, tmp_path / "out")


@pytest.fixture
def jina(tmp_path):
    """Jina v3 as on the Hub: it says xlm-roberta, and each matrix has an adapter for each task."""
    model = redraw(JinaEmbeddingsV3Model(JinaEmbeddingsV3Config(**SIZES)))
    folder = tmp_path / "jina"
    folder.mkdir()
    config = {"model_type": "xlm-roberta", **SIZES, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
    config |= {"position_embedding_type": "rotary", "rotary_emb_base": 20000.0, "lora_rank": 2, "lora_alpha": 1}
    (folder / "config.json").write_text(json.dumps({**config, "lora_adaptations": TASKS}))
    pairs = (("emb_ln", "embeddings.LayerNorm"),)
    weights = {}
    for name, tensor in older(model, pairs, "mixer").items():
        if name.endswith(("Wqkv.weight", "fc1.weight")):
            stem = name.removesuffix(".weight")
            rows, columns = tensor.shape
            weights[f"{stem}.parametrizations.weight.original"] = tensor
            weights[f"{stem}.parametrizations.weight.0.lora_A"] = torch.randn(len(TASKS), 2, columns)
            weights[f"{stem}.parametrizations.weight.0.lora_B"] = torch.randn(len(TASKS), rows, 2)
        else:
            weights[name] = tensor
    save_file({f"roberta.{name}": tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    return folder


def test_adapters_are_kept(jina, tmp_path):
    """Under transformers' names adapters have no place, so the file keeps its own."""
    output = convert(jina, tmp_path / "out", verify=True)
    assert load_file(output / "model.safetensors").keys() == load_file(jina / "model.safetensors").keys()
    ids = mx.array(IDS.numpy())
    plain = BertCore.from_pretrained(output)(ids).last_hidden_state
    for task in TASKS:
        ours, source = (
            BertCore.from_pretrained(path, lora_task=task)(ids).last_hidden_state for path in (output, jina)
        )
        assert mx.array_equal(ours, source).item()
        assert not mx.allclose(ours, plain, atol=1e-3).item()


def test_quantising_leaves_adapters_out_and_says_so(jina, tmp_path):
    with pytest.warns(UserWarning, match="the adapters are left out"):
        report = convert_checkpoint(jina, tmp_path / "out", quantization=Quantization(), verify=True)
    assert report.cosine > 0.99
    assert report.left_floating == []
