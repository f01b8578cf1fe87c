"""What is found in a table: target, task, columns, settings."""

import csv

import pytest

from mlx_bert.data.analysis import DatasetAnalysis, analyze_dataset, column_kind
from mlx_bert.training.args import TrainingArgs


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
    for name in ("user_id", "id", "ID", "PassengerId", "userID", "IDNumber", "order-id", "Item Id"):
        assert column_kind(name, list(range(9))) == "id"
        assert column_kind(name, [1, 1, 2]) == "numerical"
    for name in ("video", "Width", "idea", "COVID", "valid", "midpoint"):
        assert column_kind(name, list(range(9))) == "numerical"
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


def found(count: int, distribution: dict[str, int] | None = None, **fields) -> DatasetAnalysis:
    """An analysis of so many rows, without the rows."""
    counts = distribution or {}
    return DatasetAnalysis(
        "multiclass_classification", "why", count, 2, ["label"], max(1, len(counts)), list(counts), counts, **fields
    )


@pytest.mark.parametrize(
    ("count", "batch", "dropout", "pooling", "frozen"),
    [
        (999, 16, 0.2, False, 6),
        (1000, 16, 0.2, False, 0),
        (4999, 16, 0.2, False, 0),
        (5000, 32, 0.2, False, 0),
        (5001, 32, 0.2, True, 0),
        (10_000, 32, 0.2, True, 0),
        (10_001, 32, 0.1, True, 0),
        (100_000, 32, 0.1, True, 0),
        (100_001, 64, 0.1, True, 0),
    ],
)
def test_where_recommendations_change(count, batch, dropout, pooling, frozen):
    analysis = found(count)
    options = {"dropout_prob": dropout} | ({"pooling_type": "attention"} if pooling else {})
    assert analysis.recommended_batch_size == batch
    assert analysis.recommended_head_options() == options
    assert analysis.recommended_frozen_layers(12) == frozen


def test_a_tenth_of_the_commonest_is_unbalanced():
    assert not found(110, {"a": 100, "b": 10}).is_balanced
    assert found(111, {"a": 100, "b": 11}).is_balanced


def test_the_report_line_by_line():
    counts = {name: number for number, name in enumerate("abcdefghi", start=50)}
    report = str(found(486, counts, text_columns=["review", "title"], id_columns=["id"]))
    assert report.splitlines() == [
        "task: multiclass_classification (why)",
        "target: label, 9 classes",
        "rows: 486, other columns: 2",
        "text columns: review, title",
        "id columns: id",
        "balanced: i 58, h 57, g 56, f 55, e 54, d 53, c 52, b 51",
        "head: dropout 0.2, default pooling (by 486 rows)",
        "training: batch 16, learning rate 2e-05, half of the layers fixed "
        "(TrainingArgs(**recommended_training_settings()))",
    ]
    assert "dropout 0.1, attention pooling, rare classes weighted (by 20000 rows and the balance)" in str(
        found(20_000, {"a": 19_000, "b": 1000})
    )
    assert "unbalanced: a 90, b 3" in str(found(93, {"a": 90, "b": 3}))
    assert str(found(9)).splitlines()[1:] == [
        "target: label, 1 value",
        "rows: 9, other columns: 2",
        "head: dropout 0.2, default pooling (by 9 rows)",
        "training: batch 16, learning rate 2e-05, half of the layers fixed "
        "(TrainingArgs(**recommended_training_settings()))",
    ]


def test_counts_of_flags_and_of_other_columns():
    analysis = analyze_dataset(rows("joy", [0, 1, 1, 1], anger=[1, 0, 0, 0], fear=["x", "y", "x", "y"]), "joy")
    assert analysis.num_features == 3
    analysis = analyze_dataset(rows("joy", [0, 1, 1, 1], anger=[1, 0, 0, 0]))
    assert analysis.class_distribution == {"anger": 1, "joy": 3}
    assert analysis.num_features == 1


def test_whole_numbers_of_other_tools_are_names_too():
    assert analyze_dataset(rows("label", [1.0, 2.0, 5.0] * 4)).classes == ["1", "2", "5"]


def test_how_many_values_are_classes():
    assert analyze_dataset(rows("label", list(range(10)) * 2)).competition_type == "multiclass_classification"
    assert analyze_dataset(rows("label", list(range(11)) * 2)).competition_type == "regression"
    names = [f"name {number}" for number in range(10)]
    assert analyze_dataset(rows("label", names * 2)).num_classes == 10  # half as many as rows
    with pytest.raises(ValueError, match="has 10 different texts in 19 rows, too many"):
        analyze_dataset(rows("label", (names * 2)[:19]))
    assert analyze_dataset(rows("label", NAMES)).num_classes == 3
    with pytest.raises(ValueError, match="has 4 different texts in 4 rows, too many"):
        analyze_dataset(rows("label", names[:4]))
    many = [f"name {number}" for number in range(1001)]
    assert analyze_dataset(rows("label", many[:1000] * 2)).num_classes == 1000
    with pytest.raises(ValueError, match="has 1001 different texts"):
        analyze_dataset(rows("label", many * 2))


def test_a_lone_column_is_no_target(tmp_path):
    with pytest.raises(ValueError, match="found no target among the columns flag"):
        analyze_dataset([{"flag": 0}, {"flag": 1}])
    (tmp_path / "a.csv").write_text("text,other\nsome words,more words\nfurther words,other words\n")
    with pytest.raises(ValueError, match=r"a.csv has no column 'x'. It has text, other"):
        analyze_dataset(tmp_path / "a.csv", "x")
    with pytest.raises(ValueError, match="the data has no column 'x'"):
        analyze_dataset([{"a": 1}], "x")
    with pytest.raises(ValueError, match="the data has no rows"):
        analyze_dataset([{}])


def test_where_names_become_text():
    four = ["a", "b", "c", "d"]
    assert column_kind("colour", [*four, "a"]) == "categorical"  # four fifths are different
    assert column_kind("colour", [*four, "e", "a"]) == "text"
    assert column_kind("colour", ["x" * 50] * 9) == "categorical"
    assert column_kind("colour", [*["x" * 50] * 8, "x" * 52]) == "text"
    assert column_kind("width", [*range(1000), "wide"]) == "numerical"  # the first thousand decide
    assert column_kind("width", [*range(999), "wide"]) == "text"


def test_rare_classes_of_every_kind_count_more():
    binary = analyze_dataset(rows("label", ["no"] * 190 + ["yes"] * 10))
    no, yes = binary.recommended_head_options()["class_weights"]
    assert (binary.competition_type, no, yes) == ("binary_classification", 0.5, pytest.approx(1.9))
    ordinal = analyze_dataset(rows("stars", [1] * 190 + [2] * 10 + [3] * 40))
    assert ordinal.competition_type == "ordinal_regression"
    weights = ordinal.recommended_head_options()["class_weights"]
    assert weights[1] == max(weights) > weights[2] > weights[0]
    labels = analyze_dataset(rows("joy", [1] * 100 + [0] * 100, rage=[0] * 196 + [1] * 4))
    assert labels.competition_type == "multilabel_classification"
    assert dict(zip(labels.classes, labels.recommended_head_options()["pos_weight"], strict=True)) == {
        "joy": 1.0, "rage": 3.0
    }  # fmt: skip
    assert not {"class_weights", "pos_weight"} & set(found(50, {"a": 20, "b": 30}).recommended_head_options())


def test_training_settings():
    assert found(999).recommended_training_settings(12) == {"batch_size": 16, "learning_rate": 2e-5, "freeze": "6"}
    assert found(999).recommended_training_settings() == {"batch_size": 16, "learning_rate": 2e-5}
    skewed = found(6000, {"a": 5900, "b": 100}).recommended_training_settings(12)
    assert skewed == {"batch_size": 32, "learning_rate": 1e-5}
    assert TrainingArgs(**skewed).batch_size == 32


def test_what_is_no_finite_number_is_no_number():
    rows = [
        {"text": f"some words {n}", "target": value} for n, value in enumerate(("nan", "1", "inf", "1", "nan", "inf"))
    ]
    analysis = analyze_dataset(rows)
    assert (analysis.competition_type, analysis.classes) == ("multiclass_classification", ["1", "inf", "nan"])
    rows[2]["target"] = float("nan")
    with pytest.raises(ValueError, match="the target 'target' is empty in row 3"):
        analyze_dataset(rows)
