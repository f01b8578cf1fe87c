"""ELECTRA against transformers."""

import mlx.core as mx
import numpy as np
import pytest
import transformers

from mlx_bert.core import BertCore

TINY = {
    "vocab_size": 99,
    "embedding_size": 24,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"embedding_size": 32, "hidden_act": "relu"},
        {"hidden_act": "gelu_new", "layer_norm_eps": 1e-2, "type_vocab_size": 3, "pad_token_id": 3},
    ],
)
def test_parity(assert_parity, options):
    assert_parity(transformers.ElectraModel(transformers.ElectraConfig(**{**TINY, **options})))


def test_parity_with_segments_and_positions(assert_parity):
    segments = np.array([[0] * 5 + [1] * 7])
    positions = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]])
    model = transformers.ElectraModel(transformers.ElectraConfig(**TINY))
    assert_parity(model, token_type_ids=segments, position_ids=positions)


def test_segments_of_a_pair_do_not_leave_the_single_segment_table():
    core = BertCore({"model_type": "electra", **TINY, "type_vocab_size": 1}).eval()
    ids, segments = mx.full((1, 6), 7), mx.array([[0, 0, 0, 1, 1, 1]])
    assert mx.array_equal(core(ids, None, segments).last_hidden_state, core(ids).last_hidden_state)


def test_half_precision(assert_half_precision):
    assert_half_precision({"model_type": "electra", **TINY})
