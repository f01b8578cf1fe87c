"""RoBERTa, XLM-RoBERTa and CamemBERT against transformers."""

import mlx.core as mx
import pytest
import transformers

from mlx_bert.core import BertCore
from mlx_bert.encoders.roberta import token_positions

TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "type_vocab_size": 1,
}


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (transformers.RobertaModel, transformers.RobertaConfig),
        (transformers.XLMRobertaModel, transformers.XLMRobertaConfig),
        (transformers.CamembertModel, transformers.CamembertConfig),
    ],
)
def test_parity(assert_parity, model, config):
    assert_parity(model(config(**TINY)))


@pytest.mark.parametrize(
    "options", [{"pad_token_id": 4}, {"hidden_act": "gelu_new"}, {"layer_norm_eps": 1e-2, "type_vocab_size": 2}]
)
def test_parity_of_options(assert_parity, options):
    assert_parity(transformers.RobertaModel(transformers.RobertaConfig(**{**TINY, **options})))


def test_positions_start_behind_the_pad_id_and_skip_padding():
    ids = mx.array([[1, 1, 7, 8], [7, 8, 9, 1]])
    wanted = mx.array([[1, 1, 2, 3], [2, 3, 4, 1]])
    assert mx.array_equal(token_positions(ids, None, 1), wanted)
    other = mx.array([[5, 5, 7, 8], [7, 8, 9, 5]])
    assert mx.array_equal(token_positions(other, mx.array([[0, 0, 1, 1], [1, 1, 1, 0]]), 1), wanted)


def test_the_longest_row_leaves_room_for_the_offset():
    core = BertCore({"model_type": "roberta", **TINY, "pad_token_id": 1})
    core(mx.full((1, 38), 7))
    with pytest.raises(ValueError, match="at most 38 tokens a row but got 39"):
        core(mx.full((1, 39), 7))


def test_segments_of_a_pair_do_not_leave_the_single_segment_table():
    core = BertCore({"model_type": "roberta", **TINY}).eval()
    ids = mx.full((1, 6), 7)
    segments = mx.array([[0, 0, 0, 1, 1, 1]])
    assert mx.array_equal(core(ids, None, segments).last_hidden_state, core(ids).last_hidden_state)


def test_half_precision(assert_half_precision):
    assert_half_precision({"model_type": "roberta", **TINY})
