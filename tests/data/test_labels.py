import numpy as np
import pytest

from mlx_bert.data.labels import LabelMap, class_numbers, class_weights, encode_labels


def test_numbers_sort_as_numbers_and_names_as_names():
    assert LabelMap.from_labels(["10", "9", "-1"]).names == ("-1", "9", "10")
    assert LabelMap.from_labels(["10", "9", "b"]).names == ("10", "9", "b")
    assert LabelMap.from_labels([["b", "a"], [], ["c"]]).names == ("a", "b", "c")


def test_round_trip_through_id2label():
    labels = LabelMap(("no", "yes"))
    assert labels.to_dict() == {"0": "no", "1": "yes"}
    assert LabelMap.from_dict(labels.to_dict()) == labels
    assert LabelMap.from_dict({1: "yes", 0: "no"}) == labels


@pytest.mark.parametrize("id2label", [{}, {"1": "a"}, {"x": "a"}])
def test_a_map_with_gaps_is_refused(id2label):
    with pytest.raises(ValueError, match="expected id2label with the keys 0 to n - 1"):
        LabelMap.from_dict(id2label)


def test_equal_names_are_refused():
    with pytest.raises(ValueError, match="expected different names"):
        LabelMap(("a", "a"))


def test_encoding_one_label_and_several():
    labels = LabelMap(("a", "b", "c"))
    assert encode_labels([{"label": "c"}], labels)[0]["labels"] == 2
    encoded = encode_labels([{"label": ["c", "a"]}, {"label": []}], labels, multilabel=True)
    np.testing.assert_array_equal([example["labels"] for example in encoded], [[1, 0, 1], [0, 0, 0]])


def test_unknown_labels_are_all_named():
    examples = [{"label": "a", "line": 2}, {"label": "x", "line": 3}, {"label": "y", "line": 7}]
    with pytest.raises(
        ValueError, match=r"b\.csv has 2 bad rows[\s\S]*line 3: unknown label 'x'; known: a[\s\S]*line 7"
    ):
        encode_labels(examples, LabelMap(("a",)), name="b.csv")


def test_class_weights_of_a_worked_example():
    assert class_weights([1000, 50]) == pytest.approx([0.5, 1.904762], abs=1e-6)
    assert class_weights([10, 10, 10]) == pytest.approx([1, 1, 1])
    assert max(class_weights([1000, 1000, 0])) == pytest.approx(2.9940, abs=1e-4)


def test_numbers_of_classes_are_whole():
    rows = [{"labels": 1}, {"labels": np.array([0.0, -100.0])}, {"labels": 2.0, "line": 7}]
    found = [example["labels"] for example in class_numbers(rows, "rows")]
    assert [type(found[0]), found[1].dtype, type(found[2])] == [int, np.int32, int]
    assert (found[0], found[1].tolist(), found[2]) == (1, [0, -100], 2)
    by_task = [{"labels": {"a": 1.0, "b": 0.5}}]
    assert class_numbers(by_task, "rows", ["a"]) == [{"labels": {"a": 1, "b": 0.5}}]
    message = (
        r"rows has 2 bad rows.*\n  line 3: expected a class, a whole number, as label but got 0\.5\n  line 9: .*nan"
    )
    with pytest.raises(ValueError, match=message):
        class_numbers([{"labels": n, "line": line} for n, line in ((1.0, 2), (0.5, 3), (np.nan, 9))], "rows")
    with pytest.raises(ValueError, match="  example 1: expected a class"):
        class_numbers([{"labels": 0}, {"labels": [1.0, 1.5]}], "rows")
