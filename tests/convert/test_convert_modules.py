"""sentence-transformers folders: modules kept, old layouts moved, unknown and hostile ones refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny_checkpoints import TEXTS

from convert import convert, convert_checkpoint


def encode(folder):
    return SentenceTransformer(str(folder), device="cpu").encode(TEXTS)


def change_modules(folder, change):
    entries = json.loads((folder / "modules.json").read_text())
    change(entries)
    (folder / "modules.json").write_text(json.dumps(entries))


def test_everything_is_kept(sentence_folder, tmp_path):
    report = convert_checkpoint(sentence_folder, tmp_path / "out")
    assert report.modules == ["Transformer", "Pooling", "Dense", "Normalize"]
    for name in ("modules.json", "1_Pooling/config.json", "2_Dense/config.json", "config_sentence_transformers.json"):
        before, after = (json.loads((folder / name).read_text()) for folder in (sentence_folder, tmp_path / "out"))
        assert before == after, name
    assert (tmp_path / "out" / "sentence_bert_config.json").is_file()


def test_dense_in_half_precision(sentence_folder, tmp_path):
    output = convert(sentence_folder, tmp_path / "out", dtype="float16")
    weights = load_file(output / "2_Dense" / "model.safetensors")
    assert weights["linear.weight"].dtype == torch.float16


def test_dense_from_bin(sentence_folder, tmp_path):
    expected = encode(sentence_folder)
    path = sentence_folder / "2_Dense" / "model.safetensors"
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()
    output = convert(sentence_folder, tmp_path / "out")
    assert sorted(file.name for file in (output / "2_Dense").iterdir()) == ["config.json", "model.safetensors"]
    np.testing.assert_array_equal(expected, encode(output))


def test_transformer_in_a_folder_of_its_own(sentence_folder, tmp_path):
    """The layout of 2020: everything of the Transformer in 0_Transformer."""
    expected = encode(sentence_folder)
    old = tmp_path / "old"
    old.mkdir()
    for name in ("modules.json", "config_sentence_transformers.json", "1_Pooling", "2_Dense", "3_Normalize"):
        if (sentence_folder / name).exists():
            shutil.move(sentence_folder / name, old / name)
    shutil.move(sentence_folder, old / "0_Transformer")
    change_modules(
        old, lambda entries: entries[0].update(path="0_Transformer", type="sentence_transformers.models.Transformer")
    )
    output = convert(old, tmp_path / "out", verify=True)
    assert json.loads((output / "modules.json").read_text())[0]["path"] == ""
    assert not (output / "0_Transformer").exists()
    np.testing.assert_array_equal(expected, encode(output))


def test_old_type_strings_and_length_config(sentence_folder, tmp_path):
    def rename(entries):
        for entry in entries:
            entry["type"] = f"sentence_transformers.models.{entry['type'].split('.')[-1]}"

    change_modules(sentence_folder, rename)
    shutil.move(sentence_folder / "sentence_bert_config.json", sentence_folder / "sentence_xlm-roberta_config.json")
    output = convert(sentence_folder, tmp_path / "out")
    assert (output / "sentence_xlm-roberta_config.json").is_file()
    assert SentenceTransformer(str(output), device="cpu").max_seq_length == 24


def test_layer_norm(sentence_folder, tmp_path):
    from sentence_transformers.models import LayerNorm

    layer = LayerNorm(32)
    torch.nn.init.normal_(layer.norm.weight)
    (sentence_folder / "3_LayerNorm").mkdir()
    layer.save(str(sentence_folder / "3_LayerNorm"))
    entry = {"idx": 3, "name": "3", "path": "3_LayerNorm", "type": "sentence_transformers.models.LayerNorm"}
    change_modules(sentence_folder, lambda entries: entries.insert(3, entry))
    output = convert(sentence_folder, tmp_path / "out")
    assert torch.equal(load_file(output / "3_LayerNorm" / "model.safetensors")["norm.weight"], layer.norm.weight)
    np.testing.assert_array_equal(encode(sentence_folder), encode(output))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e[1].update(type="sentence_transformers.models.CNN"), r"models\.CNN' is not supported"),
        (lambda e: e[0].update(type="custom_st.Transformer"), r"'custom_st\.Transformer' is not supported"),
        (lambda e: e[1].update(path="../../etc"), "expected a module's path to be a folder's name"),
        (lambda e: e[1].update(path="/etc"), "expected a module's path to be a folder's name"),
        (lambda e: e[1].update(path=".."), "expected a module's path to be a folder's name"),
        (lambda e: e[0].update(path="a/b"), "expected a module's path to be a folder's name"),
        (lambda e: e[1].update(path="link"), "is a link to a place outside"),
        (lambda e: e[1].update(path=""), "to have a folder of its own"),
        (lambda e: e[2].update(path="1_Pooling"), "to have a folder of its own"),
        (lambda e: e.reverse(), "to begin with its only Transformer"),
        (lambda e: e[1].pop("type"), "to have a type and a path as text"),
        (lambda e: e.clear(), "to hold a list of modules but got list"),
    ],
)
def test_refused(sentence_folder, tmp_path, change, message):
    (sentence_folder / "link").symlink_to("/etc")
    change_modules(sentence_folder, change)
    with pytest.raises(ValueError, match=message):
        convert(sentence_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_not_json(sentence_folder, tmp_path):
    (sentence_folder / "modules.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not valid JSON"):
        convert(sentence_folder, tmp_path / "out")


def test_incomplete_modules(sentence_folder, tmp_path):
    (sentence_folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"1_Pooling lacks config\.json"):
        convert(sentence_folder, tmp_path / "out")


def test_dense_with_foreign_weights(sentence_folder, tmp_path):
    from safetensors.torch import save_file

    save_file({"other.weight": torch.ones(2)}, sentence_folder / "2_Dense" / "model.safetensors")
    with pytest.raises(ValueError, match=r"unexpected 'other\.weight'"):
        convert(sentence_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
