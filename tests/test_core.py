"""BertCore and BertOutput: one face over every encoder."""

import shutil

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from mlx.utils import tree_flatten

from mlx_bert import BertCore, create_bert_core
from mlx_bert.checkpoint import read_json, read_weights, write_json
from mlx_bert.encoders import ENCODERS
from mlx_bert.encoders.bert import Config
from mlx_bert.tokenizer import Tokenizer

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99}
IDS = mx.array([[5, 6, 7, 8], [9, 10, 0, 0]])
MASK = mx.array([[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.fixture(scope="module")
def core(tiny_bert_folder) -> BertCore:
    return BertCore.from_pretrained(tiny_bert_folder)


def test_poolings(core):
    output = core(IDS, MASK)
    states = np.array(output.last_hidden_state)
    assert np.allclose(output.cls_output, states[:, 0])
    assert np.allclose(output.mean_pooled, np.stack([states[0].mean(0), states[1, :2].mean(0)]), atol=1e-6)
    assert np.allclose(output.max_pooled, np.stack([states[0].max(0), states[1, :2].max(0)]))
    weight, bias = core.encoder.pooler.dense.weight, core.encoder.pooler.dense.bias
    assert np.allclose(output.pooler_output, mx.tanh(mx.array(states[:, 0]) @ weight.T + bias), atol=1e-6)
    for name, attribute in {"cls": "cls_output", "mean": "mean_pooled", "max": "max_pooled"}.items():
        assert mx.array_equal(output.get_pooled_output(name), output[attribute])
    assert mx.array_equal(output.get_pooled_output(), output.cls_output)
    with pytest.raises(ValueError, match="expected pooling_type to be one of cls, mean, max, pooler but got 'sum'"):
        output.get_pooled_output("sum")


def test_output_is_a_mapping_and_has_attributes(core):
    output = core(IDS, MASK)
    assert output["last_hidden_state"] is output.last_hidden_state
    assert "mean_pooled" in output
    assert output.hidden_states is None
    assert "attentions" not in list(output)
    with pytest.raises(KeyError, match="BertOutput has no 'logits'"):
        output["logits"]


def test_poolings_wait_until_asked_for(core):
    output = core(IDS, MASK, compute_pooling=False)
    assert "mean_pooled" not in list(output)
    assert mx.array_equal(output.mean_pooled, core(IDS, MASK).mean_pooled)
    assert "mean_pooled" in list(output)


def test_hidden_states_and_attentions_on_request(core):
    output = core(IDS, MASK, output_attentions=True, output_hidden_states=True)
    assert len(output.hidden_states) == 3
    assert mx.array_equal(output.hidden_states[-1], output.last_hidden_state)
    assert [weights.shape for weights in output.attentions] == [(2, 4, 4, 4)] * 2
    assert mx.allclose(output.attentions[0].sum(-1), mx.ones((2, 4, 4)))
    assert np.allclose(np.array(output.attentions[0])[1, :, :, 2:], 0)


def test_an_all_padding_row_is_finite(core):
    output = core(IDS, mx.array([[0, 0, 0, 0], [1, 1, 0, 0]]))
    for name in ("last_hidden_state", *output.POOLINGS):
        assert mx.all(mx.isfinite(output[name])).item(), name


def test_batches_do_not_mix(core):
    together = core(IDS, MASK).last_hidden_state
    assert mx.allclose(core(IDS[:1]).last_hidden_state, together[:1], atol=1e-5)
    assert mx.allclose(core(IDS[1:, :2]).last_hidden_state, together[1:, :2], atol=1e-5)


@pytest.mark.parametrize("mask", [MASK.astype(mx.bool_), MASK.astype(mx.float32), MASK.astype(mx.int32)])
def test_masks_of_any_type(core, mask):
    assert mx.array_equal(core(IDS, mask).mean_pooled, core(IDS, MASK).mean_pooled)


def test_accessors(core):
    assert core.get_hidden_size() == 32
    assert core.get_num_layers() == 2
    assert core.get_config()["model_type"] == "bert"
    assert core.config.hidden_size == 32


def test_wrong_input_is_refused(core):
    with pytest.raises(ValueError, match=r"expected input_ids of shape \(B, L\)"):
        core(mx.array([1, 2]))
    with pytest.raises(ValueError, match="neither 0"):
        core(mx.zeros((0, 4), dtype=mx.int32))
    with pytest.raises(ValueError, match="expected integer input_ids"):
        core(mx.zeros((1, 4)))
    with pytest.raises(ValueError, match="at most 64 tokens a row but got 65"):
        core(mx.zeros((1, 65), dtype=mx.int32))
    with pytest.raises(ValueError, match=r"attention_mask of shape \(2, 4\) but got \(2, 3\)"):
        core(IDS, MASK[:, :3])


def test_factory_ways(tiny_bert_folder):
    assert create_bert_core(**SMALL).get_hidden_size() == 32
    assert create_bert_core(config=SMALL, num_hidden_layers=1).get_num_layers() == 1
    assert create_bert_core(config=Config(**SMALL), hidden_size=64).get_hidden_size() == 64
    assert create_bert_core().get_num_layers() == 12  # lazily: nothing is allocated before it is used
    assert create_bert_core(tiny_bert_folder).get_hidden_size() == 32
    assert create_bert_core(tiny_bert_folder, hidden_dropout_prob=0.5).config.hidden_dropout_prob == 0.5
    assert create_bert_core(model_type="modernbert", **SMALL).config.model_type == "modernbert"
    with pytest.raises(ValueError, match="unknown config keys"):
        create_bert_core(hidden_sizes=3)
    with pytest.raises(ValueError, match=r"model_type 'gpt2' is not supported. Supported: .*modernbert"):
        create_bert_core(model_type="gpt2")
    with pytest.raises(ValueError, match=r"model_type \['bert'\] is not supported"):
        create_bert_core(model_type=["bert"])
    with pytest.raises(ValueError, match="multiple of num_attention_heads but got 32 and 5"):
        create_bert_core(**{**SMALL, "num_attention_heads": 5})
    with pytest.raises(ValueError, match="expected num_hidden_layers to be a positive integer but got 0"):
        create_bert_core(**{**SMALL, "num_hidden_layers": 0})
    with pytest.raises(ValueError, match="unknown activation 'gulu'"):
        create_bert_core(**SMALL, hidden_act="gulu")
    with pytest.raises(ValueError, match="expected position_embedding_type to be 'absolute' but got 'relative_key'"):
        create_bert_core(**SMALL, position_embedding_type="relative_key")


def test_dropout_only_in_training(tiny_bert_folder):
    core = BertCore.from_pretrained(tiny_bert_folder)
    quiet = core(IDS, MASK).last_hidden_state
    assert mx.array_equal(core(IDS, MASK).last_hidden_state, quiet)
    core.train()
    assert not mx.array_equal(core(IDS, MASK).last_hidden_state, quiet)
    core.eval()
    assert mx.array_equal(core(IDS, MASK).last_hidden_state, quiet)


@pytest.mark.parametrize("model_type", [name for name in ("bert", "roberta", "modernbert") if name in ENCODERS])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_saved_weights_come_back_bit_equal(model_type, dtype, tmp_path):
    core = create_bert_core(model_type=model_type, **SMALL, compute_additional_pooling=False).eval()
    core.set_dtype(getattr(mx, dtype))
    core.save_pretrained(tmp_path / "saved")
    again = BertCore.from_pretrained(tmp_path / "saved")
    before, after = dict(tree_flatten(core.parameters())), dict(tree_flatten(again.parameters()))
    assert before.keys() == after.keys()
    assert all(mx.array_equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    assert again.compute_additional_pooling is False
    assert again.config == core.config
    assert read_json(tmp_path / "saved" / "config.json")["dtype"] == dtype
    assert read_json(tmp_path / "saved" / "bert_core_config.json") == {
        "compute_additional_pooling": False,
        "bert_core_version": "1.0.0",
    }


@pytest.mark.parametrize("model_type", ["bert", "roberta", "modernbert"])
def test_transformers_loads_what_is_saved(model_type, tmp_path):
    core = create_bert_core(model_type=model_type, **SMALL, pad_token_id=1).eval()
    core.save_pretrained(tmp_path)
    reference, report = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        wanted = reference.eval()(torch.tensor([[5, 6, 7, 8]])).last_hidden_state.numpy()
    assert np.allclose(core(IDS[:1]).last_hidden_state, wanted, atol=1e-5)


def test_loading_is_strict(tiny_bert_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert_folder, folder)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "num_hidden_layers": 3})
    with pytest.raises(ValueError, match=r"missing layers.2.attention.out.bias"):
        BertCore.from_pretrained(folder)
    write_json(folder / "config.json", {**config, "num_hidden_layers": 1})
    with pytest.raises(ValueError, match=r"unexpected layers.1.attention.out.bias"):
        BertCore.from_pretrained(folder)
    write_json(folder / "config.json", {**config, "intermediate_size": 96})
    with pytest.raises(ValueError, match=r"layers.0.mlp.up.weight expected shape \(96, 32\) but got \(64, 32\)"):
        BertCore.from_pretrained(folder)
    write_json(folder / "config.json", {**config, "model_type": "modernbert"})
    with pytest.raises(ValueError, match="unexpected tensor 'embeddings"):
        BertCore.from_pretrained(folder)


def test_weights_take_the_memory_of_the_file(minilm_source):
    size = (minilm_source / "model.safetensors").stat().st_size
    for dtype in (None, "float16"):
        mx.clear_cache()
        base = mx.get_active_memory()
        mx.reset_peak_memory()
        core = BertCore.from_pretrained(minilm_source, dtype=dtype)
        assert mx.get_peak_memory() - base < 1.1 * size
        assert core.encoder.embeddings.word.weight.dtype == (mx.float16 if dtype else mx.float32)
        del core


def test_reading_is_lazy(minilm_source):
    mx.clear_cache()
    base = mx.get_active_memory()
    weights = read_weights(minilm_source)
    assert len(weights) > 100
    assert mx.get_active_memory() - base < 1_000_000


def test_real_weights_against_transformers(minilm_source):
    tokenizer = Tokenizer.from_pretrained(minilm_source)
    batch = tokenizer(["A plane is taking off.", "The quick brown fox jumps over the lazy dog, twice!"])
    reference = transformers.AutoModel.from_pretrained(minilm_source)
    with torch.no_grad():
        wanted = reference(
            torch.tensor(np.array(batch.input_ids)), attention_mask=torch.tensor(np.array(batch.attention_mask))
        )
    got = BertCore.from_pretrained(minilm_source)(batch.input_ids, batch.attention_mask)
    real = np.array(batch.attention_mask)
    assert np.abs(np.array(got.last_hidden_state) - wanted.last_hidden_state.numpy())[real].max() < 1e-4
    assert np.abs(np.array(got.pooler_output) - wanted.pooler_output.numpy()).max() < 1e-4


def test_compiled_equals_eager(core):
    compiled = mx.compile(lambda ids, mask: core(ids, mask).mean_pooled)
    assert mx.allclose(compiled(IDS, MASK), core(IDS, MASK).mean_pooled, atol=1e-6)
