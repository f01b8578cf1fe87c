"""What a task checkpoint says about its labels and scores survives conversion, saving and export."""

import json

import mlx.core as mx
import numpy as np
import pytest
import transformers
from sentence_transformers import CrossEncoder as Reference

from convert import convert
from convert.export import export_checkpoint
from mlx_bert import BertWithHead, Tokenizer
from mlx_bert.checkpoint import read_json
from mlx_bert.inference.cross_encoder import CrossEncoder, stored_activation
from reference import redraw, save_word_tokenizer

IDENTITY = "torch.nn.modules.linear.Identity"
PAIRS = [("the dog", "is good"), ("a bad movie", "never again"), ("good", "bad")]


def classifier(base, folder, extra, **options):
    """A sequence classifier beside the tiny BERT's tokenizer, with more keys in its config."""
    config = transformers.AutoConfig.from_pretrained(base, **options)
    redraw(transformers.AutoModelForSequenceClassification.from_config(config)).save_pretrained(folder)
    save_word_tokenizer(folder)
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}  # as BERT's tokenizer has it
    for path, more in ((folder / "config.json", extra), (folder / "tokenizer_config.json", names)):
        path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    return folder


@pytest.mark.parametrize("way", ["convert", "save", "export"])
@pytest.mark.parametrize(
    "extra",
    [
        {"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.0.0"}},
        {"sbert_ce_default_activation_function": IDENTITY},
    ],
    ids=["today", "older"],
)
def test_the_activation_of_a_cross_encoder(tiny_bert_folder, tmp_path, extra, way):
    source = classifier(tiny_bert_folder, tmp_path / "source", extra, num_labels=1)
    folder = convert(source, tmp_path / "converted")
    if way != "convert":
        BertWithHead.from_pretrained(folder).save_pretrained(tmp_path / "saved", Tokenizer.from_pretrained(folder))
        folder = tmp_path / "saved"
    if way == "export":
        (folder,) = export_checkpoint(folder, tmp_path / "exported")
    raw = CrossEncoder.from_pretrained(source, activation_fn=IDENTITY).predict(PAIRS)
    assert np.abs(raw).max() > 1  # a sigmoid would show
    np.testing.assert_allclose(CrossEncoder.from_pretrained(folder).predict(PAIRS), raw, atol=1e-5)
    if way != "save":  # a folder of ours is none of theirs
        assert extra.items() <= read_json(folder / "config.json").items()
        np.testing.assert_allclose(Reference(str(folder), device="cpu").predict(PAIRS), raw, atol=1e-5)


def test_the_activation_beside_the_config(tiny_bert_folder, tmp_path):
    source = classifier(tiny_bert_folder, tmp_path / "source", {}, num_labels=1)
    settings = {"model_type": "CrossEncoder", "activation_fn": IDENTITY}
    (source / "config_sentence_transformers.json").write_text(json.dumps(settings))
    folder = convert(source, tmp_path / "converted")
    assert stored_activation(folder) == IDENTITY
    BertWithHead.from_pretrained(folder).save_pretrained(tmp_path / "saved", Tokenizer.from_pretrained(folder))
    assert stored_activation(tmp_path / "saved") == IDENTITY
    (exported,) = export_checkpoint(tmp_path / "saved", tmp_path / "exported")
    assert stored_activation(exported) == IDENTITY


@pytest.mark.parametrize(
    ("problem", "head_type"),
    [
        ("multi_label_classification", "multilabel_classification"),
        ("single_label_classification", "multiclass_classification"),
        ("regression", "regression"),
    ],
)
def test_labels_and_problem(tiny_bert_folder, tmp_path, problem, head_type):
    names = {0: "bad", 1: "fair", 2: "good"}
    options = {"id2label": names, "label2id": {name: key for key, name in names.items()}, "problem_type": problem}
    source = classifier(tiny_bert_folder, tmp_path / "source", {"function_to_apply": "none"}, **options)
    folder = convert(source, tmp_path / "converted")
    assert read_json(folder / "config.json")["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
    model = BertWithHead.from_pretrained(folder)
    assert (model.id2label, model.head.config.head_type) == (names, head_type)
    model.save_pretrained(tmp_path / "saved", Tokenizer.from_pretrained(folder))
    again = BertWithHead.from_pretrained(tmp_path / "saved")
    ids = mx.array([[5, 6, 7]])
    assert again.id2label == names
    assert mx.array_equal(again(ids)["logits"], model(ids)["logits"])
    (exported,) = export_checkpoint(tmp_path / "saved", tmp_path / "exported")
    for place in (folder, exported):
        config = transformers.AutoConfig.from_pretrained(place)
        assert (config.id2label, config.problem_type, config.function_to_apply) == (names, problem, "none")
        assert config.label2id == options["label2id"]
