"""NomicBERT against transformers, in today's spelling and in that of Nomic's own code."""

import mlx.core as mx
import numpy as np
import pytest
import transformers

from mlx_bert.core import BertCore
from mlx_bert.encoders import nomic_bert
from reference import redraw, to_mlx

TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
OLDER = {
    "model_type": "nomic_bert",
    "vocab_size": 99,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 40,
    "n_positions": 64,
    "max_trained_positions": 32,
    "layer_norm_epsilon": 1e-12,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_scaling_factor": None,
    "activation_function": "swiglu",
    "prenorm": False,
    "qkv_proj_bias": False,
    "type_vocab_size": 2,
    "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
}


def build(**options):
    return transformers.NomicBertModel(transformers.NomicBertConfig(**{**TINY, **options}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hidden_act": "gelu", "layer_norm_eps": 1e-2, "type_vocab_size": 3},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "num_attention_heads": 2},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 50.0, "factor": 4.0}},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 50.0, "factor": 4.0}},
    ],
)
def test_parity(assert_parity, options):
    assert_parity(build(**options))


def test_parity_with_segments_and_positions(assert_parity):
    segments = np.array([[0] * 5 + [1] * 7])
    positions = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]])
    rope = {"rope_type": "linear", "rope_theta": 50.0, "factor": 2.0}
    core = assert_parity(build(rope_parameters=rope), token_type_ids=segments, position_ids=positions)
    assert core.encoder.pooler is None


def test_parity_of_the_pooler(assert_parity):
    config = transformers.NomicBertConfig(**TINY)
    core = assert_parity(transformers.NomicBertModel(config, add_pooling_layer=True))
    assert core.encoder.pooler is not None


def older_names(weights):
    """Transformers' names -> those of nomic-ai/nomic-bert-2048."""
    renamed = {}
    for name, array in weights.items():
        if name.startswith("layers."):
            name = f"encoder.{name}"
        for new, old in (
            ("embeddings.LayerNorm", "emb_ln"),
            ("self_attn.o_proj", "attn.out_proj"),
            ("up_proj", "fc11"),
            ("gate_proj", "fc12"),
            ("down_proj", "fc2"),
            ("post_attention_layernorm", "norm1"),
            ("post_mlp_layernorm", "norm2"),
        ):
            name = name.replace(new, old)
        renamed[name] = array
    for layer in range(TINY["num_hidden_layers"]):
        stem = f"encoder.layers.{layer}"
        parts = [renamed.pop(f"{stem}.self_attn.{part}_proj.weight") for part in "qkv"]
        renamed[f"{stem}.attn.Wqkv.weight"] = mx.concatenate(parts)
    return renamed


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_older_names_and_keys(prefix, tmp_path):
    reference = redraw(build())
    native, old = BertCore(reference.config.to_dict()), BertCore(OLDER)
    native.load_weights_from(to_mlx(reference.state_dict()))
    file = {prefix + name: array for name, array in older_names(to_mlx(reference.state_dict())).items()}
    file["cls.predictions.bias"] = mx.zeros(99)
    own, others = old.names.split(file)
    assert others == ["cls.predictions.bias"]
    old.load_weights_from({name: file[stored] for name, stored in own.items()})
    ids = mx.array([[5, 6, 7, 8, 9]])
    expected = native.eval()(ids).last_hidden_state
    assert mx.array_equal(old.eval()(ids).last_hidden_state, expected)
    # What is written has today's names and keys: transformers itself reads it.
    old.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path, local_files_only=True)
    assert isinstance(again, transformers.NomicBertModel)
    written = again.state_dict()
    assert all(np.array_equal(written[name], array) for name, array in reference.state_dict().items())
    assert again.config.hidden_size == 32
    assert again.config.rope_parameters["rope_theta"] == 1000
    assert not {"auto_map", "n_embd", "rotary_emb_base"} & old.stored_config().keys()
    assert BertCore.from_pretrained(tmp_path)(ids).last_hidden_state.tolist() == expected.tolist()


def test_an_older_config_means_the_same():
    assert nomic_bert.Config.from_dict(OLDER) == nomic_bert.Config.from_dict({**TINY, "rope_theta": 1000})
    geglu = nomic_bert.Config.from_dict({**OLDER, "activation_function": "geglu", "rotary_emb_base": 10})
    assert (geglu.hidden_act, geglu.rotary.base) == ("gelu", 10)
    scaled = nomic_bert.Config.from_dict({**OLDER, "rotary_scaling_factor": 2})
    assert scaled.max_tokens == 32
    assert scaled.rope_parameters == {"rope_type": "dynamic", "rope_theta": 1000, "factor": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prenorm": True}, "expected prenorm to be None or False but got True"),
        ({"num_experts": 8}, "expected num_experts"),
        ({"rotary_emb_fraction": 0.5}, "expected rotary_emb_fraction"),
        ({"activation_function": "gelu"}, "expected activation_function to be swiglu, geglu, glu but got 'gelu'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "expected rope_type to be default, linear or dynamic"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "expected factor to be a positive number but got 0"),
        ({"head_dim": 4}, "expected head_dim to be None or 8 but got 4"),
    ],
)
def test_other_variants_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        nomic_bert.Config.from_dict({**OLDER, **change})


def test_two_spellings_of_one_tensor_are_refused():
    weights = {"emb_ln.weight": mx.ones(32), "embeddings.LayerNorm.weight": mx.ones(32)}
    with pytest.raises(ValueError, match="comes twice, in two spellings"):
        nomic_bert.NAMES.to_memory(weights)


def test_half_precision(assert_half_precision):
    assert_half_precision({"model_type": "nomic_bert", **TINY})
