"""ALBERT against transformers."""

import mlx.core as mx
import numpy as np
import pytest
import transformers
from mlx.utils import tree_flatten

from mlx_bert.core import BertCore
from mlx_bert.model import BertWithHead

TINY = {
    "vocab_size": 99,
    "embedding_size": 24,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hidden_act": "gelu", "layer_norm_eps": 1e-2, "pad_token_id": 3},
        {"embedding_size": 32, "num_hidden_layers": 5, "num_hidden_groups": 3},
        {"inner_group_num": 2, "num_hidden_groups": 2, "type_vocab_size": 3},
    ],
)
def test_parity(assert_parity, options):
    assert_parity(transformers.AlbertModel(transformers.AlbertConfig(**{**TINY, **options})))


def test_parity_with_segments_and_positions(assert_parity):
    segments = np.array([[0] * 5 + [1] * 7])
    positions = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]])
    model = transformers.AlbertModel(transformers.AlbertConfig(**TINY))
    assert_parity(model, token_type_ids=segments, position_ids=positions)


def test_without_pooler_the_pooler_output_is_the_first_state(assert_parity):
    core = assert_parity(transformers.AlbertModel(transformers.AlbertConfig(**TINY), add_pooling_layer=False))
    assert core.encoder.pooler is None


def test_names_on_disk_are_those_of_transformers():
    options = {**TINY, "inner_group_num": 2, "num_hidden_groups": 2}
    reference = transformers.AlbertModel(transformers.AlbertConfig(**options)).state_dict()
    core = BertCore({"model_type": "albert", **options})
    assert {name: array.shape for name, array in core.weights_on_disk().items()} == {
        name: tuple(tensor.shape) for name, tensor in reference.items()
    }


def test_freezing_counts_layers_that_have_weights():
    head = {"head_type": "multiclass_classification", "input_size": 32, "output_size": 2}
    model = BertWithHead(BertCore({"model_type": "albert", **TINY}), head, freeze_bert_layers=1)
    left = {name for name, _ in tree_flatten(model.bert.encoder.trainable_parameters())}
    assert left == {"pooler.dense.weight", "pooler.dense.bias"}
    with pytest.raises(ValueError, match="num_layers from 0 to 1 but got 2"):
        model.freeze_bert(2)


def test_segments_of_a_pair_do_not_leave_the_single_segment_table():
    core = BertCore({"model_type": "albert", **TINY, "type_vocab_size": 1}).eval()
    ids, segments = mx.full((1, 6), 7), mx.array([[0, 0, 0, 1, 1, 1]])
    assert mx.array_equal(core(ids, None, segments).last_hidden_state, core(ids).last_hidden_state)


@pytest.mark.parametrize(
    "options", [{"num_hidden_groups": 4}, {"num_hidden_groups": 0}, {"inner_group_num": 0}, {"inner_group_num": 10**9}]
)
def test_groups_that_make_no_stack_are_refused(options):
    with pytest.raises(ValueError, match="expected 1 to 3 num_hidden_groups and 1 to 64 inner_group_num"):
        BertCore({"model_type": "albert", **TINY, **options})


def test_half_precision(assert_half_precision):
    assert_half_precision({"model_type": "albert", **TINY})
