"""Checkpoints that came to the Hub with code of their own: what is converted needs none, and gives the same numbers."""

import mlx.core as mx
import pytest
import transformers
from mlx.utils import tree_flatten

from convert import convert
from mlx_bert.checkpoint import entries_of, read_json, write_json, write_safetensors
from mlx_bert.core import BertCore

SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
CONFIGS = {
    "nomic_bert": {
        "model_type": "nomic_bert",
        "vocab_size": 99,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 40,
        "n_positions": 64,
        "rotary_emb_base": 1000,
        "activation_function": "swiglu",
        "prenorm": False,
        "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
    },
    "gte": {
        "model_type": "new",
        **SIZES,
        "rope_theta": 500.0,
        "rope_scaling": {"type": "ntk", "factor": 2.0},
        "pack_qkv": True,
        "position_embedding_type": "rope",
        "auto_map": {"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"},
    },
    "jina_embeddings_v3": {
        "model_type": "xlm-roberta",
        **SIZES,
        "position_embedding_type": "rotary",
        "rotary_emb_base": 500.0,
        "lora_adaptations": ["a", "b"],
        "lora_rank": 4,
        "lora_alpha": 1,
        "pad_token_id": 1,
        "auto_map": {"AutoModel": "jinaai/xlm-roberta-flash-implementation--modeling_lora.XLMRobertaLoRA"},
    },
    "eurobert": {
        "model_type": "eurobert",
        **SIZES,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "rope_theta": 9.0,
        "auto_map": {"AutoModel": "modeling_eurobert.EuroBertModel"},
    },
    "bert": {
        "model_type": "bert",
        **SIZES,
        "position_embedding_type": "alibi",
        "feed_forward_type": "geglu",
        "auto_map": {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"},
    },
}


def older_names(core: BertCore) -> dict[str, mx.array]:
    """The weights in the older spelling of their name map, if it has one."""
    older = core.names.older
    result = {}
    for name, array in tree_flatten(core.encoder.parameters()):
        path, _, suffix = name.rpartition(".")
        number = next((part for part in path.split(".") if part.isdigit()), "")
        disks = older.get(path.replace(f".{number}.", ".{n}.", 1) if number else path)
        if disks is None:
            result |= core.names.to_disk({name: array})
            continue
        for disk, part in zip(disks, mx.split(array, len(disks)), strict=True):
            result[f"{disk.replace('{n}', number)}.{suffix}"] = part
    return result


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
