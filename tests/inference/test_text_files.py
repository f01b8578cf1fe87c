"""Texts and ids out of every kind of file."""

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlx_bert.inference.text_files import Record, TextFiles

JSON_TEXTS = '{"text": " x "}\n{"text": ""}\n{"text": "y"}'


def test_ids_are_kept_where_every_file_has_them(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 1, "text": "x"}\n{"id": 2, "text": "y"}\n')
    (tmp_path / "b.csv").write_text("id,text\nn3,z\n")
    (tmp_path / "c.txt").write_text("w\n")
    assert list(TextFiles(tmp_path / "a.jsonl")) == [Record("x", 1), Record("y", 2)]
    both = TextFiles([tmp_path / "a.jsonl", tmp_path / "b.csv"])
    assert both.check() == 3
    assert list(both) == [Record("x", "1"), Record("y", "2"), Record("z", "n3")]
    assert list(TextFiles([tmp_path / "b.csv", tmp_path / "c.txt"])) == [Record("z"), Record("w")]
    assert [entry[:2] for entry in both.identity()] == [["a.jsonl", 46], ["b.csv", 13]]


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_parquet(tmp_path, kind):
    texts = pa.array(["x", "", "y"], pa.large_string() if kind == "large_string" else pa.string())
    texts = texts.dictionary_encode() if kind == "dictionary" else texts
    pq.write_table(pa.table({"key": [5, 6, 7], "text": texts, "more": [0.5, 1, 2]}), tmp_path / "a.parquet")
    source = TextFiles(tmp_path / "a.parquet", id_column="key")
    assert source.check() == 3
    assert list(source) == [Record("x", 5), Record("", 6), Record("y", 7)]
    assert next(iter(TextFiles(tmp_path / "a.parquet"))) == Record("x")


def test_folders_and_patterns(tmp_path):
    for name in ("b.txt", "a.txt", "c.csv", "card.md"):
        (tmp_path / name).write_text("text\n" + name)
    assert [path.name for path in TextFiles(tmp_path).paths] == ["a.txt", "b.txt", "c.csv"]
    assert [path.name for path in TextFiles(str(tmp_path / "*.txt")).paths] == ["a.txt", "b.txt"]
    with pytest.raises(FileNotFoundError, match=r"nothing-\*.txt does not exist"):
        TextFiles(tmp_path / "nothing-*.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty has no file ending in .txt"):
        TextFiles(tmp_path / "empty")


def test_texts_are_as_in_the_file_but_for_its_mark_and_line_ends(tmp_path):
    for name, content in (("a.txt", " x \r\n\ny"), ("a.csv", 'text\n x \n""\ny\n'), ("a.jsonl", JSON_TEXTS)):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert [record.text for record in TextFiles(tmp_path / name)] == [" x ", "", "y"], name


def test_a_long_cell(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "a" * 200_000 + "\n")
    assert len(next(iter(TextFiles(tmp_path / "a.csv"))).text) == 200_000


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": 1, "text": "a"}, {"text": "b"}], "an id that is text or a whole number in field 'id' of .* line 2"),
        ([{"id": [1], "text": "a"}], r"whole number in field 'id' of .*a.jsonl line 1 but got \[1\]"),
        ([{"id": True, "text": "a"}], "but got True"),
    ],
)
def test_bad_ids(tmp_path, rows, message):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=message):
        TextFiles(tmp_path / "a.jsonl").check()


def test_errors(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("text\na\n")
    with pytest.raises(ValueError, match=r"no id column 'key'. It has 'text'"):
        TextFiles(tmp_path / "a.csv", id_column="key")
    (tmp_path / "a.parquet").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"a.parquet is not valid Parquet"):
        TextFiles(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["a", None], "body": [1, 2]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"text in column 'text' of .*b.parquet row 2 but got NoneType"):
        TextFiles(tmp_path / "b.parquet").check()
    with pytest.raises(ValueError, match=r"b.parquet has no column 'title'. It has 'text', 'body'"):
        TextFiles(tmp_path / "b.parquet", "title").check()
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r'Parquet files need pyarrow. Install it: pip install "mlx-bert\[parquet\]"'):
        TextFiles(tmp_path / "b.parquet")
