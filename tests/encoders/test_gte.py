"""GTE against transformers, in today's spelling and in that of Alibaba's own code."""

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers

from mlx_bert.core import BertCore
from mlx_bert.encoders import gte
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
    "model_type": "new",
    **TINY,
    "auto_map": {"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"},
    "layer_norm_type": "layer_norm",
    "logn_attention_scale": False,
    "logn_attention_clip1": False,
    "pack_qkv": True,
    "position_embedding_type": "rope",
    "rope_theta": 500.0,
    "rope_scaling": {"type": "ntk", "factor": 2.0},
    "type_vocab_size": 0,
    "unpad_inputs": False,
    "use_memory_efficient_attention": False,
}


def build(**options):
    return transformers.GteModel(transformers.GteConfig(**{**TINY, **options}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"type_vocab_size": 0, "hidden_act": "silu", "layer_norm_eps": 1e-2},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "num_attention_heads": 2},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2 ** (2 / 8)}},
    ],
)
def test_parity(assert_parity, options):
    assert_parity(build(**options))


def test_parity_with_segments_and_positions(assert_parity):
    segments = np.array([[0] * 5 + [1] * 7])
    positions = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]])
    assert_parity(build(type_vocab_size=2), token_type_ids=segments, position_ids=positions)


def test_parity_of_the_pooler(assert_parity):
    core = assert_parity(transformers.GteModel(transformers.GteConfig(**TINY), add_pooling_layer=True))
    assert core.encoder.pooler is not None


def older_names(weights):
    """Transformers' names -> those of Alibaba-NLP/new-impl, q, k and v packed, up and gate packed."""
    renamed = {}
    for name, array in weights.items():
        for new, old in (
            ("layers.", "encoder.layer."),
            ("self_attn.o_proj", "attention.o_proj"),
            ("post_attention_layernorm", "attn_ln"),
            ("post_mlp_layernorm", "mlp_ln"),
        ):
            name = name.replace(new, old)
        renamed[name] = array
    for layer in range(TINY["num_hidden_layers"]):
        stem = f"encoder.layer.{layer}"
        for suffix in ("weight", "bias"):
            parts = [renamed.pop(f"{stem}.self_attn.{part}_proj.{suffix}") for part in "qkv"]
            renamed[f"{stem}.attention.qkv_proj.{suffix}"] = mx.concatenate(parts)
        parts = [renamed.pop(f"{stem}.mlp.{part}_proj.weight") for part in ("up", "gate")]
        renamed[f"{stem}.mlp.up_gate_proj.weight"] = mx.concatenate(parts)
    return renamed


@pytest.mark.parametrize("prefix", ["", "new.", "gte."])
def test_older_names_and_keys(prefix, tmp_path):
    old = BertCore(OLDER)
    # NTK scaling as Alibaba's code has it, put into the transformers model by hand.
    reference = redraw(build(type_vocab_size=0))
    exponents = torch.arange(0, 8, 2).float() / 8
    reference.rotary_emb.inv_freq.copy_(1.0 / (500.0 * 2.0) ** exponents / 2.0 ** (2 / 8))
    file = {prefix + name: array for name, array in older_names(to_mlx(reference.state_dict())).items()}
    file["classifier.weight"] = mx.zeros((2, 32))
    own, others = old.names.split(file)
    assert others == ["classifier.weight"]
    old.load_weights_from({name: file[stored] for name, stored in own.items()})
    ids = np.array([[5, 6, 7, 8, 9, 10, 11, 12]])
    with torch.no_grad():
        expected = reference(torch.tensor(ids)).last_hidden_state.numpy()
    np.testing.assert_allclose(np.array(old.eval()(mx.array(ids)).last_hidden_state), expected, atol=1e-4)
    # What is written has today's names and keys: transformers itself reads it and turns by the same angles.
    old.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path, local_files_only=True).eval()
    assert isinstance(again, transformers.GteModel)
    with torch.no_grad():
        np.testing.assert_allclose(again(torch.tensor(ids)).last_hidden_state.numpy(), expected, atol=1e-4)
    assert not {"auto_map", "rope_theta", "pack_qkv"} & old.stored_config().keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logn_attention_scale": True}, "expected logn_attention_scale to be None or False but got True"),
        ({"position_embedding_type": "absolute"}, "expected position_embedding_type to be None or 'rope'"),
        ({"layer_norm_type": "rms_norm"}, "expected layer_norm_type"),
        ({"rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 0.8}}, "mixed_b is not supported"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "expected rope_type to be default, linear or dynamic"),
    ],
)
def test_other_variants_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        gte.Config.from_dict({**OLDER, **change})


def test_half_precision(assert_half_precision):
    assert_half_precision({"model_type": "gte", **TINY})
