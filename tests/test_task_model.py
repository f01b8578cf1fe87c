"""A new or loaded task head saves as a checkpoint of transformers' class, with equal outputs there."""

import shutil

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers

from mlx_bert.core import BertCore
from mlx_bert.model import BertWithHead
from mlx_bert.task_model import TaskModel
from mlx_bert.tokenizer import Tokenizer
from reference import redraw, save_word_tokenizer, word_tokenizer

TEXTS = ["the good dog sleeps.", "a bad film!", "it is"]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
}
CONFIGS = {
    "bert": transformers.BertConfig,
    "roberta": transformers.RobertaConfig,
    "modernbert": transformers.ModernBertConfig,
    "distilbert": transformers.DistilBertConfig,
    "albert": transformers.AlbertConfig,
    "deberta-v2": transformers.DebertaV2Config,
    "electra": transformers.ElectraConfig,
    "mpnet": transformers.MPNetConfig,
}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 66}
CLASSES = {
    "sequence_classification": transformers.AutoModelForSequenceClassification,
    "token_classification": transformers.AutoModelForTokenClassification,
    "masked_lm": transformers.AutoModelForMaskedLM,
}


@pytest.fixture(scope="module", params=CONFIGS)
def encoder(request, tmp_path_factory):
    """A bare encoder as transformers saves it."""
    folder = tmp_path_factory.mktemp(request.param)
    special = {} if request.param in ("roberta", "mpnet") else {"pad_token_id": 0}
    sizes = DISTIL if request.param == "distilbert" else SIZES
    if request.param in ("albert", "electra"):
        sizes = {**sizes, "embedding_size": 16}
    config = CONFIGS[request.param](vocab_size=word_tokenizer().get_vocab_size(), **sizes, **special)
    redraw(transformers.AutoModel.from_config(config), std=0.3).save_pretrained(folder)
    save_word_tokenizer(folder)
    return folder


@pytest.mark.parametrize(("task", "num_labels"), [("sequence_classification", 1), ("sequence_classification", 3),
                                                  ("token_classification", 4), ("masked_lm", None)])  # fmt: skip
def test_a_new_head_saves_as_transformers_class(encoder, task, num_labels, tmp_path):
    mx.random.seed(0)
    model = TaskModel.new(BertCore.from_pretrained(encoder), task, num_labels).eval()
    tokenizer = Tokenizer.from_pretrained(encoder)
    for name in ("output.weight", "projection.blocks.0.dense.weight"):  # larger than new ones, so that errors show
        arrays = model.head.state_arrays()
        if name in arrays:
            model.head.load_state_arrays({**arrays, name: mx.random.normal(arrays[name].shape) * 0.3})
    model.save_pretrained(tmp_path / "saved", tokenizer)
    batch = tokenizer(TEXTS)
    ours = np.array(model(*batch)["logits"])
    reference = CLASSES[task].from_pretrained(tmp_path / "saved").eval()
    mask = np.ones(batch.input_ids.shape) if batch.attention_mask is None else np.array(batch.attention_mask)
    with torch.no_grad():
        theirs = reference(torch.tensor(np.array(batch.input_ids)), torch.tensor(mask)).logits.numpy()
    real = mask.astype(bool) if ours.ndim == 3 else slice(None)
    np.testing.assert_allclose(ours[real], theirs[real], atol=1e-4)
    for cls in (TaskModel, BertWithHead):
        again = cls.from_pretrained(tmp_path / "saved")
        np.testing.assert_allclose(np.array(again(*batch)["logits"])[real], theirs[real], atol=1e-4)
    loaded = BertCore.from_pretrained(tmp_path / "saved")
    states = [np.array(core(*batch).last_hidden_state)[mask.astype(bool)] for core in (loaded, model.bert)]
    np.testing.assert_array_equal(*states)


def test_the_pooler_of_the_checkpoint_goes_into_the_head(tiny_bert_folder):
    bert = BertCore.from_pretrained(tiny_bert_folder)
    pooler = np.array(bert.encoder.pooler.dense.weight)
    model = TaskModel.new(bert, "sequence_classification", 1)
    np.testing.assert_array_equal(model.head.pooling.dense.weight, pooler)
    assert model.bert.encoder.pooler is None


def test_labels_are_kept_or_made_anew(tiny_bert_folder, tmp_path):
    model = TaskModel.new(BertCore.from_pretrained(tiny_bert_folder), "sequence_classification", 2)
    assert model.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    model.set_labels({0: "no", 1: "yes"})
    model.save_pretrained(tmp_path / "saved")
    assert TaskModel.from_pretrained(tmp_path / "saved").id2label == {0: "no", 1: "yes"}
    kept = TaskModel.new(BertCore.from_pretrained(tmp_path / "saved"), "token_classification", 2)
    assert kept.id2label == {0: "no", 1: "yes"}
    other = TaskModel.new(BertCore.from_pretrained(tmp_path / "saved"), "token_classification", 3)
    assert other.id2label == {n: f"LABEL_{n}" for n in range(3)}


def test_errors(tiny_bert_folder, tmp_path):
    bert = BertCore.from_pretrained(tiny_bert_folder)
    with pytest.raises(ValueError, match="expected an architecture with a head for summaries in transformers"):
        TaskModel.new(bert, "summaries", 2)
    with pytest.raises(ValueError, match="expected a head of 'bert' in transformers but got 'ranking'"):
        TaskModel(bert, {"head_type": "ranking", "input_size": 32})
    shutil.copytree(tiny_bert_folder, tmp_path / "plain")
    with pytest.raises(ValueError, match="no task head"):
        TaskModel.from_pretrained(tmp_path / "plain")
