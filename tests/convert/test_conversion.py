"""Conversions from end to end: what is written is complete, loads elsewhere unchanged, and nothing is half-written."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import TEXTS, VOCABULARY, tiny_config
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaForTokenClassification,
)

from convert import convert, convert_checkpoint
from mlx_bert.core import BertCore
from reference import redraw

IDS = torch.tensor([[2, 9, 14, 7, 3], [2, 30, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def torch_states(folder) -> torch.Tensor:
    with torch.no_grad():
        return AutoModel.from_pretrained(folder).eval()(IDS, attention_mask=MASK).last_hidden_state.float()


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_float32_is_bit_equal_and_loads_in_transformers(bert_folder, tmp_path):
    output = convert(bert_folder, tmp_path / "out")
    assert output == tmp_path / "out"
    before, after = tensors_of(bert_folder), tensors_of(output)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(torch_states(bert_folder), torch_states(output))
    assert json.loads((output / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(bert_folder, tmp_path, dtype):
    output = convert(bert_folder, tmp_path / "out", dtype=dtype, verify=True)
    before, after = tensors_of(bert_folder), tensors_of(output)
    for name in before:
        assert torch.equal(before[name].to(getattr(torch, dtype)), after[name]), name
    model = AutoModel.from_pretrained(output)
    assert model.dtype == getattr(torch, dtype)
    assert json.loads((output / "config.json").read_text())["dtype"] == dtype
    core = BertCore.from_pretrained(output)
    assert core.encoder.embeddings.norm.weight.dtype == getattr(mx, dtype)


def test_torch_dtype_follows(bert_folder, tmp_path, edit_json):
    edit_json(bert_folder / "config.json", dtype=None, torch_dtype="float32")
    output = convert(bert_folder, tmp_path / "out", dtype="float16")
    config = json.loads((output / "config.json").read_text())
    assert config["torch_dtype"] == config["dtype"] == "float16"
    assert AutoModel.from_pretrained(output).dtype == torch.float16


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_bin_with_old_spellings(bert_folder, tmp_path, zipped):
    """gamma and beta, the prefix of a task model, a position_ids buffer, no safetensors: a file of 2019."""
    weights = tensors_of(bert_folder)
    old = {"bert.embeddings.position_ids": torch.arange(64)[None]}
    for name, tensor in weights.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old[f"bert.{name}"] = tensor
    (bert_folder / "model.safetensors").unlink()
    torch.save(old, bert_folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    output = convert(bert_folder, tmp_path / "out", verify=True)
    after = tensors_of(output)
    assert after.keys() == {f"bert.{name}" for name in weights}
    assert all(torch.equal(weights[name], after[f"bert.{name}"]) for name in weights)
    assert not list(output.glob("*.bin"))


def test_classifier_is_kept(tmp_path):
    model = BertForSequenceClassification(tiny_config(num_labels=3, id2label={0: "bad", 1: "so so", 2: "good"}))
    redraw(model)
    model.eval().save_pretrained(tmp_path / "in")
    output = convert(tmp_path / "in", tmp_path / "out")
    again = AutoModelForSequenceClassification.from_pretrained(output).eval()
    assert again.config.id2label == {0: "bad", 1: "so so", 2: "good"}
    with torch.no_grad():
        assert torch.equal(again(IDS, attention_mask=MASK).logits, model(IDS, attention_mask=MASK).logits)


def test_masked_lm_with_a_tied_decoder_that_the_file_omits(tmp_path):
    model = BertForMaskedLM(tiny_config())
    redraw(model)
    model.eval().save_pretrained(tmp_path / "in")
    assert "cls.predictions.decoder.weight" not in tensors_of(tmp_path / "in")
    report = convert_checkpoint(tmp_path / "in", tmp_path / "out", verify=True)
    assert report.strangers == []
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_roberta_head_without_pooler(tmp_path):
    config = RobertaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    config.intermediate_size, config.max_position_embeddings, config.num_labels = 48, 40, 4
    model = RobertaForTokenClassification(config)
    redraw(model)
    model.save_pretrained(tmp_path / "in")
    output = convert(tmp_path / "in", tmp_path / "out", verify=True)
    assert tensors_of(output).keys() == tensors_of(tmp_path / "in").keys()


def test_modernbert(tmp_path):
    config = ModernBertConfig(
        vocab_size=60, hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48, pad_token_id=0
    )
    model = ModernBertModel(config)
    redraw(model)
    model.save_pretrained(tmp_path / "in")
    output = convert(tmp_path / "in", tmp_path / "out", dtype="bfloat16", verify=True)
    assert AutoModel.from_pretrained(output).dtype == torch.bfloat16
    assert torch.equal(torch_states(tmp_path / "in"), torch_states(convert(tmp_path / "in", tmp_path / "same")))


def test_sentence_transformer_encodes_the_same(sentence_folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    output = convert(sentence_folder, tmp_path / "out", verify=True)
    before = SentenceTransformer(str(sentence_folder), device="cpu")
    after = SentenceTransformer(str(output), device="cpu")
    assert after.prompts == before.prompts
    assert after.max_seq_length == before.max_seq_length == 24
    np.testing.assert_array_equal(before.encode(TEXTS), after.encode(TEXTS))
    np.testing.assert_array_equal(before.encode(TEXTS, prompt_name="query"), after.encode(TEXTS, prompt_name="query"))


def test_real_minilm_encodes_the_same(minilm, tmp_path):
    from sentence_transformers import SentenceTransformer

    output = convert(minilm, tmp_path / "out")
    before, after = (SentenceTransformer(str(path), device="cpu") for path in (minilm, output))
    np.testing.assert_array_equal(before.encode(TEXTS), after.encode(TEXTS))


def test_sharded_and_float64_source(bert_folder, tmp_path):
    weights = {name: tensor.double() for name, tensor in tensors_of(bert_folder).items()}
    (bert_folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own in shards.items():
        save_file({name: weights[name] for name in own}, bert_folder / file)
    weight_map = {name: file for file, own in shards.items() for name in own}
    (bert_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    output = convert(bert_folder, tmp_path / "out", verify=True)
    after = tensors_of(output)
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert all(torch.equal(weights[name].float(), after[name]) for name in weights)
    assert not list(output.glob("*.index.json"))


def test_tensors_of_no_known_use_are_kept_and_reported(bert_folder, tmp_path):
    weights = tensors_of(bert_folder)
    save_file({f"bert.{k}": v for k, v in weights.items()} | {"mystery.weight": torch.ones(3)}, bert_folder / "x")
    shutil.move(bert_folder / "x", bert_folder / "model.safetensors")
    report = convert_checkpoint(bert_folder, tmp_path / "out")
    assert report.strangers == ["mystery.weight"]
    assert "mystery.weight" in tensors_of(tmp_path / "out")
    assert "of no known use: 1 tensors (mystery.weight)" in str(report)


def test_report(bert_folder, tmp_path):
    report = convert_checkpoint(bert_folder, tmp_path / "out", dtype="float16")
    size = sum(tensor.numel() for tensor in tensors_of(bert_folder).values())
    assert (report.weights, report.bytes_before, report.bytes_after) == (size, 4 * size, 2 * size)
    assert "16.00 bits per weight" in str(report)
    assert f"written to {tmp_path / 'out'}" in str(report)
    assert "tokenizer: built from vocab.txt" in str(report)


def test_default_output(bert_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert convert(f"{bert_folder}/") == Path("mlx_bert")
    assert (tmp_path / "mlx_bert" / "model.safetensors").is_file()


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def refuses(bert_folder, tmp_path):
    """Convert and expect an error, with nothing left behind."""

    def check(message: str, error=ValueError, **options):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(error, match=message):
            convert(bert_folder, tmp_path / "out", **options)
        assert sorted(tmp_path.iterdir()) == before

    return check


def test_existing_output(refuses, tmp_path):
    (tmp_path / "out").mkdir()
    refuses("out exists already", FileExistsError)


def test_unknown_type(refuses, bert_folder, edit_json):
    edit_json(bert_folder / "config.json", model_type="t5")
    refuses("model_type 't5' is not supported. Supported: .*bert.*modernbert")
    edit_json(bert_folder / "config.json", model_type=None)
    refuses("model_type None is not supported")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"feed_forward_type": "geglu"}, "feed_forward_type"),
        ({"auto_map": {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"}}, "auto_map"),
        ({"model_type": "xlm-roberta", "lora_adaptations": ["retrieval.query"]}, "lora_adaptations"),
        ({"model_type": "xlm-roberta", "position_embedding_type": "alibi"}, "position_embedding_type"),
        ({"model_type": "xlm-roberta", "auto_map": {"AutoModelForMaskedLM": "x--y.Z"}}, "auto_map"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ],
)
def test_impostor(refuses, bert_folder, edit_json, changes, key):
    edit_json(bert_folder / "config.json", **changes)
    refuses(f"its key '{key}'.*belongs to another architecture")


@pytest.mark.parametrize(
    "changes",
    [
        {"position_embedding_type": "alibi", "feed_forward_type": "geglu", "emb_pooler": "mean"},
        {"model_type": "xlm-roberta", "position_embedding_type": "rotary"},
    ],
)
def test_config_of_jina_with_weights_of_bert(refuses, bert_folder, edit_json, changes):
    """Jina's models say bert and xlm-roberta; they are known by their keys, so plain weights don't fit them."""
    edit_json(bert_folder / "config.json", **changes)
    refuses("the weights are not those of a|unexpected tensor")


def test_an_auto_map_of_the_tokenizer_alone_is_harmless(bert_folder, tmp_path, edit_json):
    edit_json(bert_folder / "config.json", auto_map={"AutoTokenizer": ["x", None]})
    convert(bert_folder, tmp_path / "out")


def test_values_too_large_for_float16(refuses, bert_folder, tmp_path):
    weights = tensors_of(bert_folder)
    weights["encoder.layer.1.output.dense.weight"][3, 4] = -70000.0
    save_file(weights, bert_folder / "model.safetensors")
    refuses("'encoder.layer.1.output.dense.weight' holds 70000, more than float16's 65504", dtype="float16")
    convert(bert_folder, tmp_path / "bf16", dtype="bfloat16")


def test_missing_unexpected_and_misshapen(refuses, bert_folder):
    weights = tensors_of(bert_folder)
    weights.pop("encoder.layer.1.attention.self.key.weight")
    weights["encoder.layer.7.output.dense.weight"] = torch.ones(2)
    weights["embeddings.LayerNorm.bias"] = torch.ones(63)
    save_file(weights, bert_folder / "model.safetensors")
    refuses(
        r"missing encoder\.layer\.1\.attention\.self\.key\.weight \(64, 64\); "
        r"unexpected encoder\.layer\.7\.output\.dense\.weight \(2,\); "
        r"embeddings\.LayerNorm\.bias expected shape \(64,\) but got \(63,\)"
    )


def test_half_a_pooler(refuses, bert_folder, tmp_path):
    weights = tensors_of(bert_folder)
    bias = weights.pop("pooler.dense.bias")
    save_file(weights, bert_folder / "model.safetensors")
    refuses(r"missing pooler\.dense\.bias")
    weights.pop("pooler.dense.weight")
    save_file(weights, bert_folder / "model.safetensors")
    convert(bert_folder, tmp_path / "without", verify=True)
    assert bias is not None
    assert "pooler.dense.weight" not in tensors_of(tmp_path / "without")


def test_both_spellings_of_one_tensor(refuses, bert_folder):
    weights = tensors_of(bert_folder)
    weights["embeddings.LayerNorm.gamma"] = weights["embeddings.LayerNorm.weight"].clone()
    save_file(weights, bert_folder / "model.safetensors")
    refuses(r"'embeddings\.LayerNorm\.weight' comes twice")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"vocab_size": 10**30},
        {"vocab_size": -3},
        {"hidden_size": "big"},
        {"hidden_act": "magic"},
        {"hidden_act": ["gelu"]},
        {"intermediate_size": None},
        {"layer_norm_eps": "x", "intermediate_size": 10**12},
    ],
)
def test_forged_config(refuses, bert_folder, edit_json, changes):
    edit_json(bert_folder / "config.json", **changes)
    refuses(r"\[")


def test_hostile_bin(refuses, bert_folder):
    (bert_folder / "model.safetensors").unlink()
    (bert_folder / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00trueq\x00\x85R.")
    refuses(r"asks for os\.system|not a PyTorch file")


def test_no_config(refuses, bert_folder):
    (bert_folder / "config.json").unlink()
    refuses(r"config\.json does not exist", FileNotFoundError)


def test_foreign_quantisation(refuses, bert_folder, edit_json):
    edit_json(bert_folder / "config.json", quantization_config={"quant_method": "gptq"})
    refuses("'quantization_config' says that the weights are quantised with 'gptq'")


def test_vocabulary_of_another_model(refuses, bert_folder):
    (bert_folder / "vocab.txt").write_text("\n".join(VOCABULARY[:5] + ["x"] * 100 + VOCABULARY[5:]) + "\n")
    refuses(r"the tokenizer gives the id \d+, but the vocabulary has", verify=True)


def test_outputs_that_are_not_finite(refuses, bert_folder):
    weights = tensors_of(bert_folder)
    weights["embeddings.LayerNorm.bias"][0] = float("nan")
    save_file(weights, bert_folder / "model.safetensors")
    refuses("outputs are not finite", verify=True)


def test_tokenizer_of_the_result_is_the_source_s(bert_folder, tmp_path):
    output = convert(bert_folder, tmp_path / "out")
    before, after = AutoTokenizer.from_pretrained(bert_folder), AutoTokenizer.from_pretrained(output)
    assert before(TEXTS)["input_ids"] == after(TEXTS)["input_ids"]


def test_no_warning_without_reason(bert_folder, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(bert_folder, tmp_path / "out", quantization={"mode": "affine", "group_size": 32})


def test_model_type_that_is_not_text(refuses, bert_folder, edit_json):
    edit_json(bert_folder / "config.json", model_type=["bert"])
    refuses("expected model_type to be text")


def test_tokenizer_that_cannot_encode(refuses, minilm, bert_folder):
    """Its model can't name what it does not know."""
    data = json.loads((minilm / "tokenizer.json").read_text())
    data["model"]["vocab"] = {"a": 0}
    data["added_tokens"], data["post_processor"] = [], None
    (bert_folder / "tokenizer.json").write_text(json.dumps(data))
    refuses(r"tokenizer\.json cannot be used", verify=True)
