"""Factories by task, competition, kind and data set."""

import mlx.core as mx
import pytest

from heads import HEADS, CompetitionType, HeadType
from mlx_bert import (
    BertCore,
    BertWithHead,
    create_bert_for_competition,
    create_bert_for_task,
    create_bert_from_dataset,
    create_model,
)
from mlx_bert.encoders.modernbert import Config as ModernBertConfig

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99}
IDS = mx.array([[5, 6, 7, 8], [9, 10, 0, 0]])


def test_create_model_by_kind(tiny_bert_folder):
    assert isinstance(create_model("bert_core", config=SMALL), BertCore)
    assert create_model("standard", config={"hidden_size": 768}).get_hidden_size() == 768
    assert create_model("modernbert", config=SMALL).config.model_type == "modernbert"
    assert create_model("mlx_embedding", pretrained_path=tiny_bert_folder).get_hidden_size() == 32
    model = create_model("classifier", head_type="multiclass_classification", num_labels=4, config=SMALL)
    assert model(IDS)["logits"].shape == (2, 4)
    assert isinstance(create_model("bert_with_head", config=SMALL, freeze_bert_layers=1), BertWithHead)
    with pytest.raises(ValueError, match=r"expected model_type to be one of bert_core, .* but got 'gpt'"):
        create_model("gpt")
    with pytest.raises(ValueError, match="expected no head for model_type 'bert_core'"):
        create_model("bert_core", head_type="regression")
    with pytest.raises(ValueError, match="expected pretrained_path with model_type 'mlx_embedding'"):
        create_model("mlx_embedding")


@pytest.mark.parametrize("task", ["ranking", HeadType.ORDINAL_REGRESSION, CompetitionType.REGRESSION, " Regression "])
def test_create_bert_for_task(task):
    model = create_bert_for_task(task, bert_config=SMALL, num_labels=3)
    assert type(model.head) is HEADS[str(task).strip().lower()]


def test_an_unknown_task_raises():
    with pytest.raises(ValueError, match="but got 'juggling'"):
        create_bert_for_task("juggling")
    with pytest.raises(ValueError, match="juggling"):
        create_bert_for_competition("juggling")


@pytest.mark.parametrize("kind", list(CompetitionType))
def test_create_bert_for_competition(kind):
    model = create_bert_for_competition(kind, bert_config=SMALL, num_labels=3)
    wanted = {"recommendation": "ranking", "time_series": "time_series_classification"}.get(kind.value, kind.value)
    assert type(model.head) is HEADS[wanted]
    if kind == CompetitionType.TIME_SERIES:
        model = create_bert_for_competition(kind, bert_config=SMALL, num_labels=1)
        assert type(model.head) is HEADS["time_series_regression"]


def test_ranking_with_one_label_works():
    model = create_bert_for_competition(competition_type="ranking", bert_config=SMALL, num_labels=1).eval()
    assert model(mx.array([[[5, 6], [7, 8], [9, 9]]]))["scores"].shape == (1, 3)


def test_from_another_architectures_config():
    config = ModernBertConfig(**{**SMALL, "max_position_embeddings": 64})
    model = create_model("bert_with_head", config=config)
    assert model.bert.config.model_type == "modernbert"


def write_csv(path, count: int) -> None:
    lines = [f'"text number {n} which is new",{"abc"[n % 3]}' for n in range(count)]
    path.write_text("\n".join(["text,label", *lines]))


def test_create_bert_from_dataset(tmp_path, tiny_bert_folder, capsys):
    write_csv(tmp_path / "data.csv", 30)
    model = create_bert_from_dataset(tmp_path / "data.csv", tiny_bert_folder)
    assert "multiclass_classification (the target has 3 names)" in capsys.readouterr().out
    assert type(model.head) is HEADS["multiclass_classification"]
    assert model.head.config.output_size == 3
    assert model.head.config.dropout_prob == 0.2
    assert model.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.analysis.num_samples == 30
    assert "layers" not in model.bert.encoder.layers[1].trainable_parameters()
    assert model.bert.encoder.layers[0].trainable_parameters()["mlp"]["up"] == {}
    assert model.bert.encoder.layers[1].trainable_parameters()["mlp"]["up"] != {}
    model = create_bert_from_dataset(tmp_path / "data.csv", tiny_bert_folder, dropout_prob=0.4, freeze_bert=True)
    assert model.head.config.dropout_prob == 0.4
    assert model.bert.encoder.layers[1].trainable_parameters()["mlp"]["up"] == {}
    model = create_bert_from_dataset(tmp_path / "data.csv", tiny_bert_folder, auto_analyze=False)
    assert type(model.head) is HEADS["binary_classification"]
    with pytest.raises(FileNotFoundError, match=r"none\.csv does not exist"):
        create_bert_from_dataset(tmp_path / "none.csv")
