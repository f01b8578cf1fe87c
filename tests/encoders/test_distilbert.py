"""DistilBERT against transformers."""

import mlx.core as mx
import numpy as np
import pytest
import transformers

from mlx_bert.core import BertCore
from mlx_bert.encoders.distilbert import Config

TINY = {
    "vocab_size": 99,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 48,
    "max_position_embeddings": 40,
}


@pytest.mark.parametrize("options", [{}, {"activation": "relu"}, {"sinusoidal_pos_embds": True, "pad_token_id": 3}])
def test_parity(assert_parity, options):
    assert_parity(transformers.DistilBertModel(transformers.DistilBertConfig(**{**TINY, **options})))


def test_parity_with_positions(assert_parity):
    positions = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]])
    assert_parity(transformers.DistilBertModel(transformers.DistilBertConfig(**TINY)), position_ids=positions)


def test_a_new_model_starts_with_the_sinusoidal_table():
    options = {**TINY, "sinusoidal_pos_embds": True, "max_position_embeddings": 512}
    reference = transformers.DistilBertModel(transformers.DistilBertConfig(**options))
    ours = BertCore({"model_type": "distilbert", **options}).encoder.embeddings.position.weight
    theirs = reference.embeddings.position_embeddings.weight.detach().numpy()
    np.testing.assert_allclose(np.array(ours), theirs, atol=1e-4)


def test_the_config_keeps_the_files_own_keys(tmp_path):
    config = Config.from_dict({"model_type": "distilbert", **TINY, "dropout": 0.3})
    assert (config.hidden_size, config.num_hidden_layers, config.dropout) == (32, 2, 0.3)
    assert Config.from_dict(config.to_dict()) == config
    BertCore(config.to_dict()).save_pretrained(tmp_path)
    saved = transformers.DistilBertConfig.from_pretrained(tmp_path)
    assert (saved.dim, saved.n_layers, saved.hidden_dim, saved.dropout) == (32, 2, 48, 0.3)
    again = BertCore.from_pretrained(tmp_path, dropout=0.0).stored_config()
    assert again["dropout"] == 0.0
    assert again["dim"] == 32
    assert "hidden_size" not in again


def test_names_of_other_architectures_count_as_they_do_in_transformers():
    given = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_act": "relu"}
    ours, theirs = Config.from_dict(given), transformers.DistilBertConfig(**given)
    assert (ours.hidden_size, ours.num_hidden_layers, ours.num_attention_heads) == (32, 1, 2)
    assert ours.hidden_act == theirs.activation == "gelu"


def test_segments_are_passed_over():
    core = BertCore({"model_type": "distilbert", **TINY}).eval()
    ids, segments = mx.full((1, 6), 7), mx.array([[0, 0, 0, 1, 1, 1]])
    assert mx.array_equal(core(ids, None, segments).last_hidden_state, core(ids).last_hidden_state)


def test_half_precision(assert_half_precision):
    assert_half_precision({"model_type": "distilbert", **TINY})
