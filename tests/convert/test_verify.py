"""--verify notices what went wrong in writing: each damage to a result is found."""

from __future__ import annotations

import mlx.core as mx
import pytest
import torch
from safetensors.torch import load_file, save_file

from convert import Quantization, convert, open_weights
from convert.verify import verify_outputs, verify_weights
from mlx_bert.checkpoint import read_json
from mlx_bert.encoders import bert

NAME = "encoder.layer.1.output.dense.weight"


def damaged(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(NAME), f"'{NAME}' is in only one of source and result"),
        (lambda w: w.update(extra=torch.ones(1)), "'extra' is in only one"),
        (lambda w: w.update({NAME: w[NAME].t().contiguous()}), "to have shape"),
        (lambda w: w[NAME].view(-1)[5].add_(1e-3), f"the values of '{NAME}' differ"),
        (lambda w: w.update({NAME: -w[NAME]}), "differ from the source's"),
    ],
)
def test_damage_is_found(bert_folder, tmp_path, change, message):
    output = convert(bert_folder, tmp_path / "out")
    assert verify_weights(output, open_weights(bert_folder)) == 0.0
    with pytest.raises(ValueError, match=message):
        verify_weights(damaged(output, change), open_weights(bert_folder))


def test_damage_to_packed_matrices_is_found(bert_folder, tmp_path):
    options = Quantization(group_size=32)
    output = convert(bert_folder, tmp_path / "out", quantization=options)
    assert 0 < verify_weights(output, open_weights(bert_folder), options.to_dict()) < 0.02
    stem = NAME.removesuffix(".weight")
    damaged(output, lambda w: w.update({f"{stem}.scales": -w[f"{stem}.scales"]}))
    with pytest.raises(ValueError, match=r"a quantised matrix is .* off its source"):
        verify_weights(output, open_weights(bert_folder), options.to_dict())


def test_cosine_to_the_source(bert_folder, tmp_path):
    output = convert(bert_folder, tmp_path / "out")
    config, source = read_json(output / "config.json"), open_weights(bert_folder)
    assert verify_outputs(output, bert, config) is None
    assert verify_outputs(output, bert, config, source).cosine == pytest.approx(1.0, abs=1e-5)
    damaged(output, lambda w: w.update({NAME: -w[NAME]}))
    assert verify_outputs(output, bert, config, source).cosine < 0.99


def test_without_a_tokenizer(bert_folder, tmp_path):
    (bert_folder / "vocab.txt").unlink()
    (bert_folder / "tokenizer_config.json").unlink()
    output = convert(bert_folder, tmp_path / "out", verify=True, dtype="float16")
    assert mx.load(str(output / "model.safetensors"))[NAME].dtype == mx.float16
