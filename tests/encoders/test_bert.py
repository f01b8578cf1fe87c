"""BERT against transformers."""

import numpy as np
import pytest
import transformers

TINY = {
    "vocab_size": 99,
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
        {"hidden_act": "gelu_new"},
        {"hidden_act": "relu", "type_vocab_size": 3},
        {"hidden_act": "silu", "layer_norm_eps": 1e-2},
        {"hidden_act": "gelu_pytorch_tanh", "num_attention_heads": 2},
        {"hidden_act": "quick_gelu", "pad_token_id": 3},
    ],
)
def test_parity(assert_parity, options):
    assert_parity(transformers.BertModel(transformers.BertConfig(**{**TINY, **options})))


def test_parity_with_segments_and_positions(assert_parity):
    segments = np.array([[0] * 5 + [1] * 7])
    positions = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]])
    model = transformers.BertModel(transformers.BertConfig(**TINY))
    assert_parity(model, token_type_ids=segments, position_ids=positions)


def test_without_pooler_the_pooler_output_is_the_first_state(assert_parity):
    core = assert_parity(transformers.BertModel(transformers.BertConfig(**TINY), add_pooling_layer=False))
    assert core.encoder.pooler is None


def test_half_precision(assert_half_precision):
    assert_half_precision({"model_type": "bert", **TINY})
