"""Decoders of mlx-lm as backbones, against transformers."""

import sys

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
import transformers
from mlx.utils import tree_flatten

from mlx_bert.core import BertCore
from mlx_bert.encoders.mlx_lm import Config
from mlx_bert.factory import create_bert_with_head
from mlx_bert.model import BertWithHead
from reference import redraw

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
DECODERS = {
    "qwen3": (transformers.Qwen3Config(**SIZES, head_dim=8), transformers.Qwen3ForCausalLM),
    "llama": (transformers.LlamaConfig(**SIZES), transformers.LlamaForCausalLM),
    "gemma2": (transformers.Gemma2Config(**SIZES, head_dim=8, query_pre_attn_scalar=8), transformers.Gemma2ForCausalLM),
}


@pytest.fixture(scope="module")
def qwen3_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3")
    config, model = DECODERS["qwen3"]
    redraw(model(config)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", DECODERS)
def test_parity(tmp_path, name):
    config, model = DECODERS[name]
    reference = redraw(model(config), std=0.2)
    reference.save_pretrained(tmp_path)
    core = BertCore.from_pretrained(tmp_path, model_type="mlx_lm")
    assert (core.get_hidden_size(), core.get_num_layers()) == (32, 2)
    rng = np.random.default_rng(0)
    for batch in (1, 2, 7):
        for side in ("right", "left", "none"):
            ids, mask = rng.integers(5, 99, (batch, 12)), np.ones((batch, 12), dtype=np.int64)
            for row in range(1, batch if side != "none" else 0):
                mask[row, slice(-row, None) if side == "right" else slice(0, row)] = 0
            with torch.no_grad():
                wanted = reference.model(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
            real = mask.astype(bool)
            for given in (None, mx.array(mask)) if side == "none" else (mx.array(mask),):
                got = np.array(core(mx.array(ids), given).last_hidden_state)
                assert np.abs(got - wanted)[real].max() < 1e-4, (batch, side)


def test_padding_never_shows(qwen3_folder):
    core = BertCore.from_pretrained(qwen3_folder, model_type="mlx_lm")
    alone = core(mx.array([[7, 8, 9]])).last_hidden_state
    left = core(mx.array([[5, 6, 7, 8, 9]]), mx.array([[0, 0, 1, 1, 1]])).last_hidden_state[:, 2:]
    right = core(mx.array([[7, 8, 9, 6, 5]]), mx.array([[1, 1, 1, 0, 0]])).last_hidden_state[:, :3]
    inside = core(mx.array([[7, 5, 8, 9]]), mx.array([[1, 0, 1, 1]])).last_hidden_state[:, mx.array([0, 2, 3])]
    assert mx.allclose(left, alone, atol=1e-5)
    assert mx.allclose(inside, alone, atol=1e-5)
    assert mx.allclose(right, alone, atol=1e-5)


def test_save_and_load(qwen3_folder, tmp_path):
    core = BertCore.from_pretrained(qwen3_folder, model_type="mlx_lm")
    core.save_pretrained(tmp_path)
    again = BertCore.from_pretrained(tmp_path)
    ids = mx.array([[7, 8, 9]])
    assert again.config == core.config
    assert mx.array_equal(again(ids).last_hidden_state, core(ids).last_hidden_state)
    assert not any(name.startswith("lm_head") for name in mx.load(str(tmp_path / "model.safetensors")))


def test_a_quantised_decoder_loads(qwen3_folder, tmp_path):
    core = BertCore.from_pretrained(qwen3_folder, model_type="mlx_lm")
    nn.quantize(core.encoder, group_size=32, bits=8)
    core._stored_config["quantization"] = {"group_size": 32, "bits": 8}
    core.save_pretrained(tmp_path)
    again = BertCore.from_pretrained(tmp_path)
    ids = mx.array([[7, 8, 9]])
    assert mx.array_equal(again(ids).last_hidden_state, core(ids).last_hidden_state)


def test_heads_pool_the_last_token_and_learn(tmp_path):
    config = {"model_type": "mlx_lm", "decoder": DECODERS["qwen3"][0].to_dict()}
    model = create_bert_with_head(config, head_type="multiclass_classification", num_labels=3, pooling_type="last")
    model.eval()
    ids, mask = mx.array([[7, 8, 9, 0, 0], [5, 6, 7, 8, 9]]), mx.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    logits = model(ids, mask)["logits"]
    alone = model(ids[:1, :3])["logits"]
    assert mx.allclose(logits[:1], alone, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert mx.allclose(BertWithHead.from_pretrained(tmp_path)(ids, mask)["logits"], logits, atol=1e-6)
    model.freeze_bert(num_layers=1)
    trainable = [name for name, _ in tree_flatten(model.bert.trainable_parameters())]
    assert any(".layers.1." in name for name in trainable)
    assert not any(".layers.0." in name or "embed_tokens" in name for name in trainable)


def test_half_precision(assert_half_precision):
    assert_half_precision({"model_type": "mlx_lm", "decoder": DECODERS["qwen3"][0].to_dict()})


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="expected a decoder that mlx-lm has but got model_type 'bert'"):
        BertCore({"model_type": "mlx_lm", "decoder": {**SIZES, "model_type": "bert"}})
    with pytest.raises(ValueError, match=r"config\.json lacks vocab_size, hidden_size"):
        Config.from_dict({"model_type": "mlx_lm", "decoder": {"model_type": "qwen3"}})
    core = BertCore({"model_type": "mlx_lm", "decoder": DECODERS["qwen3"][0].to_dict()})
    for option in ({"output_attentions": True}, {"output_hidden_states": True}, {"position_ids": mx.array([[0]])}):
        with pytest.raises(ValueError, match="expected no position_ids, output_hidden_states or output_attentions"):
            core(mx.array([[5]]), **option)


def test_a_decoder_of_another_build_is_refused():
    mamba = {
        "model_type": "mamba",
        "vocab_size": 99,
        "hidden_size": 32,
        "intermediate_size": 64,
        "state_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 2,
    }
    with pytest.raises(ValueError, match="expected mamba to keep its layers in `model`"):
        BertCore({"model_type": "mlx_lm", "decoder": mamba})


def test_without_mlx_lm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlx_lm.utils", None)
    with pytest.raises(ImportError, match=r"needs mlx-lm .* pip install mlx-lm"):
        BertCore({"model_type": "mlx_lm", "decoder": DECODERS["qwen3"][0].to_dict()})
