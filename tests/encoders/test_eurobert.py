"""EuroBERT against transformers."""

import mlx.core as mx
import numpy as np
import pytest
import transformers
from mlx.utils import tree_flatten

from mlx_bert.core import BertCore
from mlx_bert.encoders import eurobert
from reference import redraw, to_mlx

TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def build(**options):
    return transformers.EuroBertModel(transformers.EuroBertConfig(**{**TINY, **options}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_key_value_heads": 1, "rms_norm_eps": 1e-2},
        {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
        {"head_dim": 12, "rope_parameters": {"rope_type": "default", "rope_theta": 250000.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 9.0, "factor": 3.0}},
    ],
)
def test_parity(assert_parity, options):
    assert_parity(build(**options))


def test_parity_with_positions(assert_parity):
    positions = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]])
    assert_parity(build(), position_ids=positions)


@pytest.mark.parametrize("head_dim", [None, 12])
def test_names_round_trip_with_unequal_parts(tmp_path, head_dim):
    reference = redraw(build(attention_bias=True, head_dim=head_dim))
    reference.save_pretrained(tmp_path / "theirs")
    core = BertCore.from_pretrained(tmp_path / "theirs")
    core.save_pretrained(tmp_path / "ours")
    again = transformers.AutoModel.from_pretrained(tmp_path / "ours", local_files_only=True).state_dict()
    assert all(np.array_equal(again[name], array) for name, array in reference.state_dict().items())
    assert core.weights_on_disk(prefix=True).keys() == {f"model.{name}" for name in reference.state_dict()}


def test_unequal_parts_need_the_config():
    model = eurobert.Model(eurobert.Config.from_dict(TINY))
    with pytest.raises(ValueError, match=r"depends on the config\. Use NAMES\.of\(config\)"):
        eurobert.NAMES.to_disk(dict(tree_flatten(model.parameters())))


def test_the_older_config_style_gives_the_same_numbers():
    reference = redraw(build(rope_parameters={"rope_type": "default", "rope_theta": 77.0}))
    older = {**TINY, "model_type": "eurobert", "rope_theta": 77.0, "rope_scaling": None, "auto_map": {"AutoModel": "x"}}
    cores = [BertCore(reference.config.to_dict()), BertCore(older)]
    for core in cores:
        core.load_weights_from(to_mlx(reference.state_dict()))
    first, second = (core.eval()(mx.array([[5, 6, 7]])).last_hidden_state for core in cores)
    assert mx.array_equal(first, second)
    assert "auto_map" not in cores[1].stored_config()


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple of num_key_value_heads but got 4 and 3"):
        eurobert.Config.from_dict({**TINY, "num_key_value_heads": 3})


def test_half_precision(assert_half_precision):
    assert_half_precision({"model_type": "eurobert", **TINY})
