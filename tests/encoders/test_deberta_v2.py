"""DeBERTa v2 and v3 against transformers."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
import transformers
from mlx.utils import tree_flatten
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from mlx_bert.core import BertCore
from mlx_bert.encoders.deberta_v2 import Config, bucket
from reference import redraw

TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
# What the published v3 models have, and v2 xlarge besides.
V3 = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "max_relative_positions": -1,
}
V2 = {**V3, "attention_head_size": 8, "conv_kernel_size": 3, "conv_act": "gelu"}


@pytest.mark.parametrize(
    "options",
    [
        V3,
        {**V3, "position_buckets": -1},
        {**V3, "position_buckets": 7, "max_relative_positions": 12, "num_attention_heads": 2},
        {**V3, "max_relative_positions": 5, "position_buckets": -1, "norm_rel_ebd": "none"},
        {**V3, "pos_att_type": ["c2p"]},
        {**V3, "pos_att_type": ["p2c"], "position_biased_input": True, "type_vocab_size": 2},
        {**V3, "pos_att_type": None},
        {**V3, "share_att_key": False, "hidden_act": "gelu_new", "layer_norm_eps": 1e-2},
        {**V3, "share_att_key": False, "pos_att_type": ["c2p"], "embedding_size": 24, "type_vocab_size": 3},
        {**V3, "share_att_key": False, "pos_att_type": ["p2c"], "position_biased_input": True, "embedding_size": 24},
        {**V3, "relative_attention": False},  # the scale and the norm stay
        {},
        V2,
        {**V2, "conv_kernel_size": 5, "conv_groups": 4, "conv_act": "tanh", "pad_token_id": 3},
    ],
)
def test_parity(assert_parity, options):
    assert_parity(transformers.DebertaV2Model(transformers.DebertaV2Config(**{**TINY, **options})), length=20)


def test_parity_with_segments_and_positions(assert_parity):
    segments = np.array([[0] * 5 + [1] * 7])
    positions = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]])
    options = {**V3, "position_biased_input": True, "type_vocab_size": 2}
    model = transformers.DebertaV2Model(transformers.DebertaV2Config(**TINY, **options))
    assert_parity(model, token_type_ids=segments, position_ids=positions)


def test_parity_on_rows_longer_than_the_table(assert_parity):
    assert_parity(transformers.DebertaV2Model(transformers.DebertaV2Config(**TINY, **V3)), length=60)


def test_gradients_flow_through_the_shifted_scores():
    reference = redraw(transformers.DebertaV2Model(transformers.DebertaV2Config(**TINY, **V3)))
    core = BertCore(reference.config.to_dict())
    core.load_weights_from({name: mx.array(tensor.numpy()) for name, tensor in reference.state_dict().items()})
    core.eval()
    ids = np.random.default_rng(0).integers(5, 99, (2, 15))
    reference(torch.tensor(ids)).last_hidden_state.square().mean().backward()

    def loss(model):
        return mx.mean(mx.square(model(mx.array(ids)).last_hidden_state))

    loss_and_grad = nn.value_and_grad(core, loss)
    _, gradients = mx.compile(lambda: loss_and_grad(core))()
    ours = core.names.to_disk(dict(tree_flatten(gradients["encoder"])))
    for name, parameter in reference.named_parameters():
        np.testing.assert_allclose(np.array(ours[name]), parameter.grad.numpy(), atol=1e-4, err_msg=name)


@pytest.mark.parametrize(("buckets", "farthest"), [(256, 512), (32, 512), (50, 128), (7, 40), (6, 12)])
def test_every_distance_falls_into_its_bucket(buckets, farthest):
    distances = torch.arange(-2000, 2001)
    wanted = make_log_bucket_position(distances, buckets, farthest).to(torch.long).tolist()
    assert [bucket(distance, buckets, farthest) for distance in distances.tolist()] == wanted


def test_a_single_token():
    core = BertCore({"model_type": "deberta-v2", **TINY, **V2}).eval()
    assert mx.all(mx.isfinite(core(mx.array([[7]])).last_hidden_state)).item()


def test_absolute_positions_bound_the_length():
    core = BertCore({"model_type": "deberta-v2", **TINY})
    with pytest.raises(ValueError, match="at most 40 tokens a row but got 41"):
        core(mx.full((1, 41), 7))


def test_float16_holds_scores_that_are_large_before_their_scaling():
    mx.random.seed(0)
    core = BertCore({"model_type": "deberta-v2", **TINY, **V3, "num_attention_heads": 1, "num_hidden_layers": 1}).eval()
    attention = core.encoder.layers[0].attention
    attention.qkv.weight = attention.qkv.weight * 150
    ids = mx.random.randint(5, 99, (3, 30))
    rows = core.encoder.relative_norm(core.encoder.relative.weight)
    (query, key, _), (position_query, position_key, _) = (
        mx.split(attention.qkv(x), 3, axis=-1) for x in (core.encoder.embeddings(ids, None, None, None), rows)
    )
    for unscaled in (query @ position_key.T, key @ position_query.T):
        assert 65504 < mx.max(mx.abs(unscaled)).item() < 65504 / attention.scale
    core.set_dtype(mx.float16)
    for asked in (False, True):
        got = core(ids, output_attentions=asked)
        assert mx.all(mx.isfinite(got.last_hidden_state)).item()
    assert mx.all(mx.isfinite(got.attentions[0])).item()


def test_a_position_table_without_use_is_passed_over():
    config = transformers.DebertaV2Config(**{**TINY, **V3})
    weights = BertCore(config.to_dict()).weights_on_disk()
    weights["embeddings.position_embeddings.weight"] = mx.zeros((40, 32))
    BertCore(config.to_dict()).load_weights_from(weights)
    core = BertCore({**config.to_dict(), "position_biased_input": True})
    with pytest.raises(ValueError, match=r"missing embeddings\.position\.weight"):
        core.load_weights_from(BertCore(config.to_dict()).weights_on_disk())


def test_both_spellings_of_the_kinds_of_attention():
    config = Config.from_dict({"pos_att_type": "P2C | c2p"})
    assert config.pos_att_type == ["p2c", "c2p"]
    assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pos_att_type": "c2p|p2p"}, "expected pos_att_type to hold 'c2p' or 'p2c' but got p2p"),
        ({"norm_rel_ebd": "batch_norm"}, "expected norm_rel_ebd 'none' or 'layer_norm' but got batch_norm"),
        ({"conv_kernel_size": 4}, "expected an odd conv_kernel_size but got 4"),
        ({"attention_head_size": 16}, "expected attention_head_size to be None or 8 but got 16"),
        ({"position_buckets": 90}, "expected position_buckets below 78, as far as positions reach, but got 90"),
    ],
)
def test_variants_that_do_not_exist_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Config.from_dict({"model_type": "deberta-v2", **TINY, **options})


def test_half_precision(assert_half_precision):
    assert_half_precision({"model_type": "deberta-v2", **TINY, **V2})
