"""What is found in a table: target, task, columns, settings."""

import csv

import pytest

from mlx_bert.data.analysis import analyze_dataset, column_kind


def rows(target: str, values: list, **columns: list) -> list[dict]:
    texts = [f"a text of its own, number {number}" for number in range(len(values))]
    table = {"text": texts, **columns, target: values}
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


NAMES = ["red", "green", "blue"]


@pytest.mark.parametrize(
    ("target", "values", "kind", "classes"),
    [
        ("label", ["pos", "neg"] * 6, "binary_classification", 2),
        ("label", [0, 1] * 6, "binary_classification", 2),
        ("label", ["0", "1"] * 6, "binary_classification", 2),
        ("label", NAMES * 4, "multiclass_classification", 3),
        ("label", [0, 1, 2] * 4, "multiclass_classification", 3),
        ("target", [3, 7, 9] * 4, "multiclass_classification", 3),
        ("rating", [1, 2, 3, 4, 5] * 3, "ordinal_regression", 5),
        ("rating", [1, 2, 5] * 4, "multiclass_classification", 3),
        ("price", [0.5 * number for number in range(12)], "regression", 1),
        ("price", list(range(12)), "regression", 1),
        ("labels", [["a", "b"], ["b"], []] * 4, "multilabel_classification", 2),
    ],
)
def test_the_task_follows_from_the_target(target, values, kind, classes):
    analysis = analyze_dataset(rows(target, values))
    assert analysis.competition_type == kind
    assert analysis.num_classes == classes
    assert analysis.target_column == target
    assert analysis.num_samples == len(values)
    assert analysis.text_columns == ["text"]
    assert kind in str(analysis)


def test_several_flags_are_one_multilabel_target():
    analysis = analyze_dataset(rows("joy", [0, 1, 1, 0] * 3, anger=[1, 0, 1, 0] * 3))
    assert analysis.competition_type == "multilabel_classification"
    assert analysis.classes == ["anger", "joy"]
    assert analysis.class_distribution == {"anger": 6, "joy": 6}


def test_groups_mean_ranking_and_dates_mean_a_time_series():
    grouped = rows("relevance", [0, 1, 2] * 4, query_id=[n // 3 for n in range(12)])
    assert analyze_dataset(grouped, "relevance").competition_type == "ranking"
    dated = rows("price", [1.5 * n for n in range(12)], day=[f"2026-01-{n + 1:02}" for n in range(12)])
    analysis = analyze_dataset(dated)
    assert analysis.competition_type == "time_series"
    assert analysis.datetime_columns == ["day"]


def test_the_target_by_name_whatever_its_case_else_the_last_column(tmp_path):
    assert analyze_dataset(rows("Survived", [0, 1] * 6, other=NAMES * 4)).target_column == "Survived"
    assert analyze_dataset(rows("colour", NAMES * 4)).target_column == "colour"
    assert analyze_dataset(rows("label", [0, 1] * 6, colour=NAMES * 4), "colour").target_column == "colour"
    with pytest.raises(ValueError, match="found no target among the columns"):
        analyze_dataset([{"a": f"some words {n}"} for n in range(9)])
    with pytest.raises(ValueError, match="has no column 'x'"):
        analyze_dataset(rows("label", [0, 1] * 6), "x")
    with pytest.raises(ValueError, match="has a single value"):
        analyze_dataset(rows("label", [1] * 6))
    with pytest.raises(ValueError, match="is empty in row 2"):
        analyze_dataset(rows("label", ["a", "", "b"]))
    with pytest.raises(ValueError, match="too many for classes"):
        analyze_dataset(rows("label", [f"word{n}" for n in range(40)]))
    with pytest.raises(ValueError, match="has no rows"):
        analyze_dataset([])


def test_columns_by_what_they_hold():
    assert column_kind("user_id", list(range(9))) == "id"
    assert column_kind("width", [1, 2.5, "3"]) == "numerical"
    assert column_kind("colour", NAMES * 9) == "categorical"
    assert column_kind("when", ["2026-01-01", "2026-01-01 10:00:00"]) == "datetime"
    assert column_kind("review", ["good film", "bad film", "fine film"]) == "text"
    assert column_kind("valid", ["yes", "no"] * 9) == "categorical"


def test_recommendations_follow_size_and_balance():
    small = analyze_dataset(rows("label", NAMES * 30))
    assert small.is_balanced
    assert (small.recommended_batch_size, small.recommended_learning_rate) == (16, 2e-5)
    assert small.recommended_head_options() == {"dropout_prob": 0.2}
    assert small.recommended_frozen_layers(12) == 6
    skewed = analyze_dataset(rows("label", ["a"] * 5800 + ["b"] * 300 + ["c"] * 100))
    assert not skewed.is_balanced
    assert (skewed.recommended_batch_size, skewed.recommended_learning_rate) == (32, 1e-5)
    options = skewed.recommended_head_options()
    assert options["pooling_type"] == "attention"
    assert options["class_weights"][0] < options["class_weights"][2]
    assert skewed.recommended_frozen_layers(12) == 0


def test_reads_csv(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows("label", NAMES * 4))
    assert analyze_dataset(tmp_path / "a.csv").classes == sorted(NAMES)
