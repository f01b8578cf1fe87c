"""Enums, task descriptions and the one HeadConfig."""

import dataclasses
import json

import mlx.core as mx
import pytest
from head_cases import CASES, build

from heads import ActivationType, HeadConfig, HeadType, NLPTaskConfig, NLPTaskType, PoolingType, create_head
from heads import get_default_config_for_head_type as default_config
from heads.nlp_tasks import CLASSIFICATION_TASKS


def test_the_37_tasks_have_their_names_as_values():
    tasks = NLPTaskType.all_tasks()
    assert len(tasks) == 37
    assert all(task.value == task.name.lower() for task in tasks)
    categories = NLPTaskType.get_task_categories()
    assert [len(group) for group in categories.values()] == [6, 6, 5, 4, 6, 3, 4, 3]
    assert [task for group in categories.values() for task in group] == tasks
    assert categories["pair"][0] is NLPTaskType.TEXT_SIMILARITY
    assert categories["information_extraction"][-1] is NLPTaskType.OPINION_EXTRACTION


def test_task_from_string():
    assert NLPTaskType.from_string("  Sentiment_Analysis ") is NLPTaskType.SENTIMENT_ANALYSIS
    with pytest.raises(ValueError, match=r"text_classification, .*but got 'poetry'"):
        NLPTaskType.from_string("poetry")


def test_enums_of_the_competition_heads():
    names = "BINARY_CLASSIFICATION MULTICLASS_CLASSIFICATION MULTILABEL_CLASSIFICATION REGRESSION ORDINAL_REGRESSION "
    names += "TIME_SERIES RANKING HIERARCHICAL CONTRASTIVE ENSEMBLE MULTI_TASK"
    for name in names.split():
        assert HeadType[name].value == name.lower()
    assert {kind.value for kind in PoolingType} == {
        "cls", "mean", "max", "attention", "weighted_mean", "last", "pooler",
    }  # fmt: skip
    assert ActivationType.SWISH == "swish"


@pytest.mark.parametrize("task", sorted(CLASSIFICATION_TASKS))
def test_classification_needs_num_classes(task):
    with pytest.raises(ValueError, match="expected num_classes"):
        NLPTaskConfig(name="x", task_type=task)


@pytest.mark.parametrize("task", NLPTaskType.get_task_categories()["generation"])
def test_generation_needs_a_vocabulary(task):
    with pytest.raises(ValueError, match="expected vocabulary_size"):
        NLPTaskConfig(name="x", task_type=task)


def test_task_config_rules():
    assert NLPTaskConfig("x", "text_regression").num_classes == 1
    assert NLPTaskConfig("x", "sentiment_analysis", num_labels=4).num_classes == 4
    assert NLPTaskConfig("x", "sentiment_analysis", num_classes=4).num_labels == 4
    with pytest.raises(ValueError, match="to agree"):
        NLPTaskConfig("x", "sentiment_analysis", num_classes=4, num_labels=3)
    with pytest.raises(ValueError, match="num_classes of 1"):
        NLPTaskConfig("x", "quality_scoring", num_classes=3)
    with pytest.raises(ValueError, match="dropout_rate"):
        NLPTaskConfig("x", "question_answering", dropout_rate=1.0)
    with pytest.raises(ValueError, match="loss_weight"):
        NLPTaskConfig("x", "question_answering", loss_weight=-1)
    with pytest.raises(ValueError, match="at least 1"):
        NLPTaskConfig("x", "sentiment_analysis", num_classes=0)
    with pytest.raises(ValueError, match="non-empty name"):
        NLPTaskConfig("", "question_answering")


def test_task_config_round_trip_keeps_every_field():
    changed = {
        "num_classes": 5, "num_labels": 5, "vocabulary_size": 9, "dropout_rate": 0.3, "loss_weight": 2.0,
        "hidden_size": 7, "label_smoothing": 0.1, "use_crf": True, "use_attention_pooling": True,
    }  # fmt: skip
    config = NLPTaskConfig("ner", NLPTaskType.NAMED_ENTITY_RECOGNITION, **changed)
    assert set(changed) | {"name", "task_type"} == {field.name for field in dataclasses.fields(NLPTaskConfig)}
    assert NLPTaskConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="beam"):
        NLPTaskConfig.from_dict({**config.to_dict(), "beam": 3})


def test_head_config_round_trip_and_aliases():
    config = HeadConfig(
        HeadType.MULTICLASS_CLASSIFICATION, 32, 5, [16, 8], activation="mish", pooling_type=PoolingType.MAX,
        class_weights=(1, 2, 3, 4, 5), extra={"loss": "focal"},
    )  # fmt: skip
    assert HeadConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    other = HeadConfig.from_dict(
        {"head_type": "multiclass_classification", "input_size": 8, "dropout_rate": 0.4, "activation_type": "relu",
         "loss": "focal"}
    )  # fmt: skip
    assert (other.dropout_prob, other.activation, other.extra) == (0.4, "relu", {"loss": "focal"})


def test_every_field_survives_the_round_trip():
    plain = HeadConfig("custom", 8).to_dict()
    other = {bool: lambda x: not x, int: lambda x: x + 1, float: lambda x: x + 0.25, dict: lambda x: {"key": [1.5]}}
    special = {
        "head_type": "other", "activation": "mish", "pooling_type": "max", "normalization_type": "rms_norm",
        "attention_type": "fnet", "ffn_type": "glu", "hidden_sizes": [4], "class_weights": [1.0, 2.0], "ffn_size": 3,
        "competition_metric": "auc", "name": "mine",
    }  # fmt: skip
    changed = {key: special[key] if key in special else other[type(value)](value) for key, value in plain.items()}
    assert all(changed[key] != value for key, value in plain.items())
    config = HeadConfig.from_dict(json.loads(json.dumps(changed)))
    assert config.to_dict() == changed
    assert HeadConfig.from_dict(config.to_dict()) == config.replace() == config


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"input_size": 0}, "input_size"),
        ({"output_size": 0}, "output_size"),
        ({"hidden_sizes": [4, 0]}, "hidden_sizes"),
        ({"dropout_prob": 1.0}, "dropout_prob"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"pooling_type": "median"}, "pooling_type"),
        ({"use_residual_connections": True}, "hidden_sizes with"),
        ({"use_weight_norm": True}, "hidden_sizes with"),
    ],
)
def test_head_config_refuses(fields, match):
    with pytest.raises(ValueError, match=match):
        HeadConfig(**{"head_type": "multiclass_classification", "input_size": 8, **fields})


def test_head_config_needs_type_and_size():
    with pytest.raises(ValueError, match="input_size"):
        HeadConfig.from_dict({"head_type": "regression"})


def test_forced_output_sizes():
    assert HeadConfig("binary_classification", 8, 7).output_size == 2
    assert HeadConfig("regression", 8, 7).output_size == 1


def test_default_configs():
    expected = {
        "binary_classification": ("cls", [32], 0.1, "gelu", "auc"),
        "multiclass_classification": ("cls", [32], 0.1, "gelu", "accuracy"),
        "multilabel_classification": ("attention", [32], 0.1, "gelu", "f1_macro"),
        "regression": ("mean", [32, 16], 0.2, "relu", "rmse"),
        "ranking": ("attention", [32, 16], 0.1, "gelu", "ndcg@10"),
        "ordinal_regression": ("cls", [32], 0.1, "gelu", "qwk"),
        "hierarchical": ("weighted_mean", [], 0.1, "gelu", "f1_macro"),
        "ensemble": ("mean", [], 0.1, "gelu", "accuracy"),
        "contrastive": ("mean", [], 0.0, "gelu", "recall@1"),
        "multi_task": ("mean", [], 0.1, "relu", "mean"),
    }
    for head_type, wanted in expected.items():
        config = default_config(head_type, 64, 3)
        got = (
            config.pooling_type, config.hidden_sizes, config.dropout_prob, config.activation, config.competition_metric,
        )  # fmt: skip
        assert got == wanted, head_type
    series = default_config("time_series", 64, 3)
    assert (series.head_type, series.pooling_type, series.dropout_prob) == ("time_series_classification", "last", 0.2)
    assert default_config("time_series", 64, 1).head_type == "time_series_regression"
    assert default_config("ranking", 64, 1, dropout_prob=0.3).dropout_prob == 0.3


@pytest.mark.parametrize("name", CASES)
def test_the_selecting_metric_is_one_that_the_head_reports(name):
    case = CASES[name]
    wanted = default_config(case.head_type, 16, case.output_size).competition_metric
    head = build(case)
    hidden, mask = case.inputs(rows=12)
    reported = head.compute_metrics(head(hidden, mask, **case.call_options), case.targets(rows=12))
    if name in ("text_regression", "contrastive_labelled", "contrastive_scores", "similarity_negatives"):
        return  # variants of a head with another purpose
    if name == "multi_task_nlp":
        wanted = "mood_accuracy"
    assert wanted in reported


@pytest.mark.parametrize(
    ("size", "task", "name"),
    [
        (1, None, "time_series_regression"),
        (4, None, "time_series_classification"),
        (4, "regression", "time_series_regression"),
        (1, "classification", "time_series_classification"),
    ],
)
def test_time_series_resolves(size, task, name):
    extra = {"task": task} if task else {}
    if name.endswith("classification"):
        extra["hidden_dim"] = 8
    head = create_head(HeadConfig("time_series", 8, size, extra=extra))
    assert head.config.head_type == name
    assert head.config.pooling_type == "last"
    assert create_head(head.get_config()).config == head.config


def test_time_series_refuses_another_task():
    with pytest.raises(ValueError, match="'classification' or 'regression'"):
        create_head(HeadConfig("time_series", 8, 2, extra={"task": "poetry"}))


def test_attention_pooling_is_unbounded_here_and_bounded_for_language_tasks():
    from heads import create_nlp_head

    hidden = mx.random.normal((2, 4, 8))
    own = create_head(HeadConfig("multiclass_classification", 8, 3, pooling_type="attention"))
    task = create_nlp_head(NLPTaskConfig("x", "sentiment_analysis", 3), 8, pooling_type="attention")
    for head in (own, task):
        head.pooling.score.weight = mx.ones((1, 8))
    scores = mx.softmax(mx.tanh(own.pooling.score(hidden)), axis=1)
    assert mx.allclose(task.pooling(hidden), mx.sum(scores * hidden, axis=1), atol=1e-5)
    scores = mx.softmax(own.pooling.score(hidden), axis=1)
    assert mx.allclose(own.pooling(hidden), mx.sum(scores * hidden, axis=1), atol=1e-5)
