"""Factories by task, competition, kind and data set."""

import mlx.core as mx
import pytest

from heads import HEADS, CompetitionType, HeadConfig, HeadType
from mlx_bert import (
    BertCore,
    BertWithHead,
    create_bert_core,
    create_bert_for_competition,
    create_bert_for_task,
    create_bert_from_dataset,
    create_bert_with_head,
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


def frozen_layers(model) -> list[bool]:
    return [layer.trainable_parameters()["mlp"]["up"] == {} for layer in model.bert.encoder.layers]


def test_what_stays_fixed(tmp_path, tiny_bert_folder):
    head = {"head_type": "multiclass_classification", "config": SMALL}
    assert frozen_layers(create_model("classifier", **head)) == [False, False]
    assert frozen_layers(create_model("classifier", freeze_bert=True, **head)) == [True, True]
    assert frozen_layers(create_model("classifier", freeze_bert_layers=1, **head)) == [True, False]
    assert frozen_layers(create_bert_for_task("ranking", bert_config=SMALL, freeze_bert=True)) == [True, True]
    task = CompetitionType.REGRESSION
    assert frozen_layers(create_bert_for_task(task, bert_config=SMALL, freeze_bert=True)) == [True, True]
    write_csv(tmp_path / "data.csv", 30)
    assert frozen_layers(create_bert_from_dataset(tmp_path / "data.csv", bert_config=SMALL)) == [False, False]
    chosen = create_bert_from_dataset(tmp_path / "data.csv", tiny_bert_folder, freeze_bert_layers=2)
    assert frozen_layers(chosen) == [True, True]
    free = create_bert_from_dataset(tmp_path / "data.csv", tiny_bert_folder, freeze_bert=False)
    assert frozen_layers(free) == [False, False]


def test_a_bare_encoder_takes_no_head():
    for options in ({"head_config": {"head_type": "regression"}}, {"freeze_bert": True}, {"freeze_bert_layers": 0}):
        with pytest.raises(ValueError, match="expected no head for model_type 'standard'"):
            create_model("standard", config=SMALL, **options)


def test_which_setting_wins(tmp_path, tiny_bert_folder):
    default = create_bert_with_head(SMALL)
    assert type(default.head) is HEADS["binary_classification"]
    config = HeadConfig("regression", 32, 1, dropout_prob=0.3)
    given = create_bert_with_head(SMALL, config, head_type="ranking", dropout_prob=0.4)
    assert (given.head.head_type, given.head.config.dropout_prob, config.dropout_prob) == ("regression", 0.4, 0.3)
    part = {"head_type": "multiclass_classification", "output_size": 5, "dropout_prob": 0.3}
    given = create_bert_with_head(SMALL, part, num_labels=7, dropout_prob=0.4, id2label={0: "x"})
    assert (given.head.config.output_size, given.head.config.dropout_prob) == (5, 0.4)
    assert given.head.config.input_size == 32
    assert given.id2label == {0: "x"}
    del part["output_size"]
    assert create_bert_with_head(SMALL, part, num_labels=7).head.config.output_size == 7
    write_csv(tmp_path / "data.csv", 30)
    named = create_bert_from_dataset(tmp_path / "data.csv", bert_config=SMALL, id2label={0: "x", 1: "y", 2: "z"})
    assert named.id2label == {0: "x", 1: "y", 2: "z"}
    told = create_bert_from_dataset(tmp_path / "data.csv", bert_config=SMALL, target_column="label")
    assert told.analysis.target_columns == ["label"]
    assert create_bert_core(config=ModernBertConfig(**SMALL), hidden_size=64).get_hidden_size() == 64
    assert create_bert_core(model_type="modernbert", **SMALL).config.model_type == "modernbert"
    assert create_bert_core(**SMALL).config.model_type == "bert"
    hybrid = create_model("cnn_hybrid", pretrained_path=tiny_bert_folder)
    assert hybrid.config.model_type == "cnn_hybrid"


@pytest.mark.parametrize(
    ("columns", "option"),
    [
        ({"label": ["no"] * 190 + ["yes"] * 10}, "_class_weights"),
        ({"stars": [1] * 150 + [2] * 10 + [3] * 40}, "_class_weights"),
        ({"a": [1] * 100 + [0] * 100, "b": [0] * 196 + [1] * 4}, "_pos_weight"),
    ],
)
def test_rare_classes_weigh_more_in_a_model_for_a_data_set(tmp_path, columns, option):
    names = ["text", *columns]
    lines = [",".join(map(str, row)) for row in zip([f"t {n}" for n in range(200)], *columns.values(), strict=True)]
    (tmp_path / "d.csv").write_text("\n".join([",".join(names), *lines]))
    model = create_bert_from_dataset(tmp_path / "d.csv", bert_config=SMALL)
    assert len(getattr(model.head, option)) == model.analysis.num_classes
    assert getattr(create_bert_from_dataset(tmp_path / "d.csv", bert_config=SMALL, class_weights=None).head, option,
                   None) is None  # fmt: skip
    if option == "_pos_weight":
        focal = create_bert_from_dataset(tmp_path / "d.csv", bert_config=SMALL, loss="focal")
        assert focal.head._pos_weight is None
