"""The small sentence transformer against torch's TransformerEncoderLayer."""

import math

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from torch import nn

from mlx_bert.core import BertCore
from mlx_bert.encoders.compact import Config, Model
from reference import redraw

SMALL = {"model_type": "compact", "vocab_size": 60, "num_hidden_layers": 3}


class Reference(nn.Module):
    """The same model out of torch's parts, with their defaults."""

    def __init__(self, config: Config):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        layer = nn.TransformerEncoderLayer(
            config.hidden_size, config.num_attention_heads, config.intermediate_size, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.num_hidden_layers, enable_nested_tensor=False)
        self.projection = nn.Linear(config.hidden_size, config.projection_size)
        self.projection_norm = nn.LayerNorm(config.projection_size)
        place = torch.arange(512)[:, None]
        rate = torch.exp(torch.arange(0, config.hidden_size, 2) * (-math.log(10000.0) / config.hidden_size))
        self.positions = torch.zeros(512, config.hidden_size)
        self.positions[:, 0::2], self.positions[:, 1::2] = torch.sin(place * rate), torch.cos(place * rate)

    def forward(self, ids, mask):
        x = self.embedding(ids) + self.positions[: ids.shape[1]]
        x = self.encoder(x, src_key_padding_mask=mask == 0)
        return self.projection_norm(self.projection(x[:, 0])), x


def weights_of(reference):
    """The torch model's weights under our names."""
    names = {
        "embedding.": "embeddings.word.",
        "encoder.layers.": "layers.",
        "self_attn.in_proj_": "attention.qkv.",
        "self_attn.out_proj": "attention.out",
        "linear1": "mlp.up",
        "linear2": "mlp.down",
        "norm1": "attention_norm",
        "norm2": "mlp_norm",
        "projection_norm": "pooler.norm",
        "projection.": "pooler.dense.",
    }
    result = {}
    for name, array in reference.state_dict().items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        result[name] = mx.array(array.numpy())
    return result


@pytest.fixture(scope="module")
def pair():
    core = BertCore(SMALL).eval()
    reference = redraw(Reference(core.config))
    with torch.no_grad():
        reference.embedding.weight[core.config.pad_token_id] = 0
    core.load_weights_from(weights_of(reference))
    return reference, core


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_parity(pair, batch):
    reference, core = pair
    ids = np.random.default_rng(batch).integers(1, 60, (batch, 11))
    for row in range(batch):
        ids[row, 11 - row :] = 0
    mask = ids != 0
    with torch.no_grad():
        sentences, states = reference(torch.tensor(ids), torch.tensor(mask))
    for given in (None, mx.array(mask)):
        got, all_states = core.encoder.embed(mx.array(ids), given, return_all=True)
        np.testing.assert_allclose(np.array(got), sentences.numpy(), atol=1e-4)
        np.testing.assert_allclose(np.array(all_states)[mask], states.numpy()[mask], atol=1e-4)
    output = core(mx.array(ids), mx.array(mask), output_hidden_states=True, output_attentions=True)
    np.testing.assert_allclose(np.array(output.pooler_output), sentences.numpy(), atol=1e-4)
    assert (len(output.hidden_states), len(output.attentions)) == (4, 3)
    assert core.encoder.embed(mx.array(ids)).shape == (batch, 32)


def test_position_ids_move_the_positions(pair):
    _, core = pair
    ids = mx.array([[7, 8, 9]])
    same = core(ids, position_ids=mx.array([[0, 1, 2]])).last_hidden_state
    assert mx.allclose(same, core(ids).last_hidden_state)
    other = core(ids, position_ids=mx.array([[2, 1, 0]])).last_hidden_state
    backwards = core(ids[:, ::-1]).last_hidden_state[:, ::-1]
    assert mx.allclose(other, backwards, atol=1e-5)


def test_defaults_are_the_seed_sizes():
    config = Config()
    assert (config.num_hidden_layers, config.num_attention_heads, config.hidden_size) == (4, 8, 64)
    assert (config.intermediate_size, config.projection_size, config.max_tokens) == (128, 32, 512)
    assert (config.hidden_dropout_prob, config.layer_norm_eps) == (0.1, 1e-5)


def test_the_padding_vector_is_zero_and_gets_no_gradient():
    model = Model(Config(vocab_size=60, pad_token_id=3))
    assert mx.all(model.embeddings.word.weight[3] == 0).item()
    ids = mx.array([[5, 6, 3], [7, 3, 3]])
    _, gradients = mlx.nn.value_and_grad(model, lambda: mx.sum(model(ids).last_hidden_state ** 3))()
    rows = mx.abs(gradients["embeddings"]["word"]["weight"]).sum(axis=-1)
    assert rows[3].item() == 0
    assert rows[5].item() > 0


def test_positions_are_no_parameter_and_not_saved(tmp_path):
    core = BertCore(SMALL).eval()
    assert not any("position" in name for name, _ in tree_flatten(core.parameters()))
    core.save_pretrained(tmp_path)
    assert not any("position" in name for name in mx.load(str(tmp_path / "model.safetensors")))
    ids = mx.array([[7, 8, 9]])
    assert mx.array_equal(BertCore.from_pretrained(tmp_path)(ids).pooler_output, core(ids).pooler_output)


def test_dropout_acts_in_training_only(pair):
    _, core = pair
    ids = mx.array([[7, 8, 9]])
    assert mx.array_equal(core(ids).pooler_output, core(ids).pooler_output)
    core.train()
    assert not mx.array_equal(core(ids).pooler_output, core(ids).pooler_output)
    core.eval()


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="expected an even hidden_size but got 9"):
        Config(hidden_size=9, num_attention_heads=3)
    with pytest.raises(ValueError, match="expected pad_token_id below vocab_size 60 but got 60"):
        Config(vocab_size=60, pad_token_id=60)


def test_half_precision(assert_half_precision):
    assert_half_precision(SMALL)


def test_new_words_are_as_loud_as_positions():
    model = Model(Config(vocab_size=500, pad_token_id=3))
    words = np.array(model.embeddings.word.weight)
    assert np.delete(words, 3, axis=0).std() == pytest.approx(1.0, abs=0.05)
    assert not words[3].any()
