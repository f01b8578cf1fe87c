import json

import pytest

from mlx_bert.data.readers import read_examples


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_csv_with_quotes_blank_lines_and_a_byte_order_mark(tmp_path):
    path = write(tmp_path / "a.csv", '\ufefftext,label\n"one, two",x\n\n"a\nb",y\nlast,z\n')
    assert read_examples(path) == [
        {"line": 2, "text": "one, two", "label": "x"},
        {"line": 4, "text": "a\nb", "label": "y"},
        {"line": 6, "text": "last", "label": "z"},  # the quoted text above takes lines 4 and 5
    ]


def test_tsv_and_json_lines_read_alike(tmp_path):
    tsv = write(tmp_path / "a.tsv", "t\tp\tl\nhello\tthere\t1\n")
    jsonl = write(tmp_path / "a.jsonl", "\n" + json.dumps({"t": "hello", "p": "there", "l": 1}) + "\n")
    first = read_examples(tsv, "t", "l", "p")
    second = read_examples(jsonl, "t", "l", "p")
    assert first == [{"line": 2, "text": "hello", "text_pair": "there", "label": "1"}]
    assert second == first


def test_a_unicode_line_separator_does_not_cut_a_line(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a\u2028b", "label": "x"}\n{"text": "c", "label": "y"}')
    assert [example["line"] for example in read_examples(path)] == [1, 2]


def test_label_kinds():
    rows = [{"text": "a", "label": "x|y"}, {"text": "b", "label": ""}, {"text": "c", "label": ["z"]}]
    assert [e["label"] for e in read_examples(rows, label_kind="multilabel")] == [["x", "y"], [], ["z"]]
    rows = [{"text": "a", "label": "1.5"}, {"text": "b", "label": 2}]
    assert [e["label"] for e in read_examples(rows, label_kind="number")] == [1.5, 2.0]
    rows = [{"text": "a", "label": "[1, 2.5]"}, {"text": "b", "label": [1, 2]}]
    assert [e["label"] for e in read_examples(rows, label_kind="number")] == [[1.0, 2.5], [1.0, 2.0]]
    with pytest.raises(ValueError, match="example 3: expected label of 2 items as before but got 1"):
        read_examples([*rows, {"text": "c", "label": 1}], label_kind="number")
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 2.0}]
    assert [e["label"] for e in read_examples(rows)] == ["1", "2"]


def test_every_bad_row_is_reported_with_its_line(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\nfine,x\n  ,x\nno label,\ntoo,many,fields\n")
    with pytest.raises(ValueError, match="has 3 bad rows") as caught:
        read_examples(path)
    message = str(caught.value)
    assert "line 3: empty text in column 'text'" in message
    assert "line 4: empty label in column 'label'" in message
    assert "line 5: expected 2 fields as in the header but got 3" in message


def test_bad_json_lines(tmp_path):
    path = write(
        tmp_path / "a.jsonl", '{"text": "a", "label": "x"}\n{"text": \n[1]\n{"text": 5, "label": "x"}\n{"label": "x"}\n'
    )
    with pytest.raises(ValueError, match="4 bad rows") as caught:
        read_examples(path)
    message = str(caught.value)
    assert "line 2: not valid JSON" in message
    assert "line 3: expected a JSON object but got [1]" in message
    assert "line 4: expected text in column 'text' but got 5" in message
    assert "line 5: column 'text' is missing" in message


def test_many_problems_are_counted_not_all_shown():
    rows = [{"text": "", "label": "x"} for _ in range(25)]
    with pytest.raises(ValueError, match=r"25 bad rows[\s\S]*and 15 more"):
        read_examples(rows)


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        ([{"text": "a", "label": "x"}], "number", "example 1: expected a finite number in column 'label' but got 'x'"),
        ([{"text": "a", "label": float("nan")}], "number", "expected a finite number"),
        ([{"text": "a", "label": True}], "number", "expected a finite number"),
        ([{"text": "a", "label": 0.5}], "class", "expected a class name in column 'label' but got 0.5"),
        ([{"text": "a", "label": None}], "class", "expected a class name in column 'label' but got None"),
        ([{"text": "a", "label": 3}], "multilabel", "expected a list of labels"),
        (["a"], "class", "expected a dict but got 'a'"),
        ([], "class", "has no rows"),
        ([{"text": "a", "label": "x"}], "words", "expected label_kind to be one of"),
    ],
)
def test_bad_values_in_memory(rows, kind, message):
    with pytest.raises(ValueError, match=message):
        read_examples(rows, label_kind=kind)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv does not exist"):
        read_examples(tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match=r"expected a file ending in \.csv"):
        read_examples(write(tmp_path / "a.xlsx", "x"))
    with pytest.raises(ValueError, match="line 2 is not UTF-8"):
        read_examples(write(tmp_path / "a.csv", "text,label\ncafé,x\n", "latin-1"))
    with pytest.raises(ValueError, match=r"no column 'text'\. It has 'review', 'label'"):
        read_examples(write(tmp_path / "b.csv", "review,label\na,x\n"))
    with pytest.raises(ValueError, match="names columns 'text' twice"):
        read_examples(write(tmp_path / "c.csv", "text,text\na,x\n"))
    with pytest.raises(ValueError, match="line 3: not valid CSV"):
        read_examples(write(tmp_path / "d.csv", 'text,label\na,x\n"open,x\nb,y\n'))
