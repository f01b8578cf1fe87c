"""ModernBERT against transformers."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import transformers
from mlx.utils import tree_flatten

from mlx_bert.core import BertCore
from mlx_bert.encoders import modernbert
from mlx_bert.encoders.modernbert import Config

TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "local_attention": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_bias": True, "attention_bias": True, "mlp_bias": True},
        {"hidden_activation": "silu", "local_attention": 4, "norm_eps": 1e-2},
        {"global_attn_every_n_layers": 2, "global_rope_theta": 60.0, "local_rope_theta": 9.0},
        {
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 20.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        },
        {"global_rope_theta": 160000.0, "local_rope_theta": 160000.0},  # mmBERT
    ],
)
def test_parity(assert_parity, options):
    assert_parity(transformers.ModernBertModel(transformers.ModernBertConfig(**{**TINY, **options})), length=20)


def test_parity_with_positions(assert_parity):
    positions = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]])
    assert_parity(transformers.ModernBertModel(transformers.ModernBertConfig(**TINY)), position_ids=positions)


def test_both_config_styles_give_the_same_config():
    old = {**TINY, "model_type": "modernbert", "global_attn_every_n_layers": 3, "global_rope_theta": 9.0}
    new = transformers.ModernBertConfig(**{key: value for key, value in old.items() if key != "model_type"}).to_dict()
    assert "global_rope_theta" not in new
    ours, theirs = Config.from_dict(old), Config.from_dict(new)
    assert ours == theirs
    assert ours.rope_parameters["full_attention"]["rope_theta"] == 9.0
    assert ours.layer_types == ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    assert Config.from_dict(ours.to_dict()) == ours
    assert Config(num_hidden_layers=4).layer_types == ours.layer_types


def test_a_local_layer_sees_half_the_window_to_each_side():
    core = BertCore({"model_type": "modernbert", **TINY, "layer_types": ["sliding_attention"] * 4}).eval()
    ids = np.full((1, 20), 7)
    _, *attentions = core(mx.array(ids), output_attentions=True).attentions
    seen = np.array(attentions[0])[0, 0] > 0
    distance = np.abs(np.arange(20)[:, None] - np.arange(20)[None, :])
    assert np.array_equal(seen, distance <= 4)


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("length", [32, 33, 39, 61])
def test_local_attention_in_blocks_equals_dense_attention(length, on_cpu, monkeypatch):
    monkeypatch.setattr(modernbert.cpu, "suits", lambda x: on_cpu)
    core = BertCore({"model_type": "modernbert", **TINY}).eval()
    ids = mx.random.randint(3, 99, (3, length))
    masks = [None, mx.arange(length)[None] < mx.array([[length], [9], [1]])]
    masks.append(masks[1][:, ::-1])
    calls = []
    in_blocks = modernbert.attend_in_blocks
    monkeypatch.setattr(modernbert, "attend_in_blocks", lambda *given: calls.append(1) or in_blocks(*given))
    for mask in masks:
        calls.clear()
        blocks = core(ids, mask).last_hidden_state
        assert len(calls) == 2  # of four layers, two are local
        with monkeypatch.context() as patch:
            patch.setattr(modernbert, "BLOCKS_FROM", 1000)
            dense = core(ids, mask).last_hidden_state
        assert len(calls) == 2
        real = np.ones((3, length), bool) if mask is None else np.array(mask)
        assert np.abs(np.array(blocks) - np.array(dense))[real].max() < 2e-5
    assert mx.all(mx.isfinite(core(ids, mx.zeros((3, length))).last_hidden_state)).item()


def test_parity_at_a_length_taken_in_blocks(assert_parity):
    options = {**TINY, "num_hidden_layers": 3, "max_position_embeddings": 160}
    assert_parity(transformers.ModernBertModel(transformers.ModernBertConfig(**options)), length=70)


def test_gradients_through_blocks():
    core = BertCore({"model_type": "modernbert", **TINY})
    loss = lambda model, ids: model(ids).last_hidden_state.square().mean()  # noqa: E731
    _, gradients = nn.value_and_grad(core, loss)(core, mx.random.randint(3, 99, (2, 40)))
    assert all(mx.all(mx.isfinite(array)).item() for _, array in tree_flatten(gradients))


def test_scaled_rotary_positions_are_refused():
    rope = {"full_attention": {"rope_type": "yarn", "rope_theta": 1.0, "factor": 2.0}}
    with pytest.raises(ValueError, match="expected rope_type 'default' for full_attention"):
        Config.from_dict({**TINY, "rope_parameters": rope})


def test_half_precision(assert_half_precision):
    assert_half_precision({"model_type": "modernbert", **TINY}, length=20)
