"""MPNet against transformers."""

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from mlx_bert.core import BertCore
from mlx_bert.encoders.mpnet import relative_buckets

TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 60,
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hidden_act": "gelu_new", "layer_norm_eps": 1e-2},
        {"relative_attention_num_buckets": 40, "num_attention_heads": 2},
    ],
)
def test_parity(assert_parity, options):
    assert_parity(transformers.MPNetModel(transformers.MPNetConfig(**{**TINY, **options})), length=24)


def test_parity_with_positions(assert_parity):
    positions = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]])
    assert_parity(transformers.MPNetModel(transformers.MPNetConfig(**TINY)), position_ids=positions)


def test_without_pooler_the_pooler_output_is_the_first_state(assert_parity):
    core = assert_parity(transformers.MPNetModel(transformers.MPNetConfig(**TINY), add_pooling_layer=False))
    assert core.encoder.pooler is None


def test_every_distance_falls_into_its_bucket():
    places = torch.arange(520)
    wanted = MPNetEncoder.relative_position_bucket(places[None, :] - places[:, None])
    assert np.array_equal(np.array(relative_buckets(520)), wanted.numpy())


def test_positions_start_behind_the_pad_id_and_leave_room_for_it():
    core = BertCore({"model_type": "mpnet", **TINY, "pad_token_id": 0}).eval()
    ids = mx.full((1, 58), 7)
    counted = core(ids, position_ids=mx.arange(2, 60)[None]).last_hidden_state
    assert mx.array_equal(core(ids).last_hidden_state, counted)
    with pytest.raises(ValueError, match="at most 58 tokens a row but got 59"):
        core(mx.full((1, 59), 7))


def test_a_bias_table_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="relative_attention_num_buckets of at least 32 but got 16"):
        BertCore({"model_type": "mpnet", **TINY, "relative_attention_num_buckets": 16})


def test_half_precision(assert_half_precision):
    assert_half_precision({"model_type": "mpnet", **TINY})
