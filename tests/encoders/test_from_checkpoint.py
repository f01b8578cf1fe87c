"""From a checkpoint to hidden states, for each architecture: every spelling on disk, converted or as it came."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers

from convert.conversion import convert_checkpoint
from mlx_bert.core import BertCore
from reference import redraw

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}
DEBERTA = {
    "intermediate_size": 48,
    "relative_attention": True,
    "position_buckets": 4,
    "pos_att_type": ["c2p", "p2c"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "conv_kernel_size": 3,
}
FAMILIES = {
    "Albert": {"intermediate_size": 48, "embedding_size": 24, "num_hidden_groups": 2},
    "Bert": {"intermediate_size": 48},
    "DebertaV2": DEBERTA,
    "DistilBert": {"hidden_dim": 48},
    "Electra": {"intermediate_size": 48, "embedding_size": 24},
    "ModernBert": {"intermediate_size": 48, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2},
    "MPNet": {"intermediate_size": 48},
    "Roberta": {"intermediate_size": 48},
}


def build(family: str) -> torch.nn.Module:
    config = getattr(transformers, f"{family}Config")(**SIZES, **FAMILIES[family])
    return redraw(getattr(transformers, f"{family}Model")(config))


def old_spelling(model: torch.nn.Module, prefix: bool) -> dict[str, torch.Tensor]:
    """The tensors as files of before 2020 name them, with the buffers and leftovers that such files carry."""
    start = f"{model.base_model_prefix}." if prefix else ""
    tensors = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tensors[start + name] = tensor
    tensors[f"{start}embeddings.position_ids"] = torch.arange(40)[None]
    if model.config.model_type == "deberta-v2":
        tensors[f"{start}embeddings.position_embeddings.weight"] = torch.zeros(40, 32)
    if prefix:
        tensors |= {"classifier.weight": torch.zeros(3, 32), "mask_predictions.dense.weight": torch.zeros(32, 32)}
    return tensors


def save(model: torch.nn.Module, folder: Path, spelling: str) -> None:
    model.save_pretrained(folder)
    if spelling != "today":
        (folder / "model.safetensors").unlink()
        torch.save(old_spelling(model, spelling == "old with prefix"), folder / "pytorch_model.bin")


def assert_same(core: BertCore, reference: torch.nn.Module) -> None:
    ids, mask = np.random.default_rng(0).integers(5, 60, (3, 9)), np.ones((3, 9), dtype=np.int64)
    mask[1, 6:] = 0
    ids[mask == 0] = reference.config.pad_token_id
    with torch.no_grad():
        wanted = reference(torch.tensor(ids), attention_mask=torch.tensor(mask))
    got = core(mx.array(ids), mx.array(mask))
    real = mask.astype(bool)
    assert np.abs(np.array(got.last_hidden_state) - wanted.last_hidden_state.numpy())[real].max() < 1e-4
    if getattr(wanted, "pooler_output", None) is not None:
        assert np.abs(np.array(got.pooler_output) - wanted.pooler_output.numpy()).max() < 1e-4


@pytest.mark.parametrize("spelling", ["today", "old", "old with prefix"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_spelling_converts_and_loads(family, spelling, tmp_path):
    reference = build(family)
    save(reference, tmp_path / "source", spelling)
    report = convert_checkpoint(tmp_path / "source", tmp_path / "converted", verify=True)
    assert report.verified
    core = BertCore.from_pretrained(tmp_path / "converted")
    assert_same(core, reference)

    # What is written is a transformers folder again, before and after it went through memory.
    core.save_pretrained(tmp_path / "saved")
    for folder in ("converted", "saved"):
        back = transformers.AutoModel.from_pretrained(tmp_path / folder).eval()
        assert type(back) is type(reference)
        assert_same(core, back)


@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_encoders_load_and_stay_close(family, tmp_path):
    reference = build(family)
    save(reference, tmp_path / "source", "today")
    quantization = {"bits": 8, "group_size": 32}
    report = convert_checkpoint(tmp_path / "source", tmp_path / "q8", quantization=quantization, verify=True)
    assert report.cosine > 0.99
    core = BertCore.from_pretrained(tmp_path / "q8")
    assert np.isfinite(np.array(core(mx.array([[7, 8, 9]])).last_hidden_state)).all()


@pytest.mark.parametrize(
    ("family", "key"),
    [("DistilBert", "n_layers"), ("Bert", "num_hidden_layers"), ("Albert", "inner_group_num")],
)
def test_a_forged_number_of_layers_is_refused_before_it_is_built(family, key, tmp_path):
    save(build(family), tmp_path / "source", "today")
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    (tmp_path / "source" / "config.json").write_text(json.dumps({**config, key: 10**9}))
    with pytest.raises(ValueError, match="1000000000"):
        convert_checkpoint(tmp_path / "source", tmp_path / "converted")
