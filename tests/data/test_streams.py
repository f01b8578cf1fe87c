"""Examples in windows: those of ``read_kind``, in bounded memory, with all bad rows before the first example."""

import csv
import json
import tracemalloc
from itertools import chain

import pytest

from mlx_bert.data.readers import read_kind, stream_kind

ROWS = [{"text": f"text {n}", "id": str(n), "label": "yes" if n % 2 else "no"} for n in range(10)]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet", "dicts"])
@pytest.mark.parametrize("window", [1, 3, 10, 99])
def test_windows_are_the_whole(tmp_path, kind, window):
    source = ROWS if kind == "dicts" else write(tmp_path / f"rows.{kind}", ROWS)
    windows = list(stream_kind(source, "class", window=window))
    assert [len(each) for each in windows] == [min(window, 10 - start) for start in range(0, 10, window)]
    assert [example for each in windows for example in each] == list(read_kind(source, "class"))


def test_data_sets_and_sentences_of_tokens(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    data = datasets.Dataset.from_list([{"text": row["text"], "label": row["label"]} for row in ROWS], features=features)
    assert list(chain(*stream_kind(data, "class", window=4))) == list(read_kind(data, "class"))
    (tmp_path / "a.conll").write_text("Ada B-PER\nslept O\n\nso O\r\n")
    wanted = list(read_kind(tmp_path / "a.conll", "tagging"))
    assert [example["tokens"] for example in wanted] == [["Ada", "slept"], ["so"]]
    assert list(chain(*stream_kind(tmp_path / "a.conll", "tagging", window=1))) == wanted


def test_a_role_that_some_rows_lack_is_none(tmp_path):
    rows = [{"question": "who?", "context": "Ada"}, {"question": "what?", "context": "a cat", "id": 7}]
    found = list(stream_kind(write(tmp_path / "a.jsonl", rows), "question_answering", labelled=False, window=1))
    assert [each["id"] for (each,) in found] == [None, "7"]


def test_all_bad_rows_show_before_the_first_example(tmp_path):
    rows = [{"text": "" if n in (3, 7) else "a"} for n in range(9)]
    with pytest.raises(ValueError, match=r"has 2 bad rows(?s:.*)line 4: empty text(?s:.*)line 8: empty text"):
        stream_kind(write(tmp_path / "a.jsonl", rows), "text", window=2)
    (tmp_path / "b.csv").write_bytes(b"text\nfine\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"b.csv line 3 is not UTF-8"):
        stream_kind(tmp_path / "b.csv", "text")
    with pytest.raises(ValueError, match="has no rows"):
        stream_kind([], "text")
    with pytest.raises(ValueError, match="has no column 'words'"):
        stream_kind(ROWS, "text", {"text": "words"})
    with pytest.raises(FileNotFoundError, match="does not exist"):
        stream_kind(tmp_path / "none.csv", "text")
    for kind, window in (("ranking", 4), ("text", 0)):
        with pytest.raises(ValueError, match="expected examples of a row each, in windows of at least 1"):
            stream_kind(ROWS, kind, window=window)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_file_of_any_size_is_read_in_bounded_memory(tmp_path, kind):
    rows = [{"text": f"{n} " + "long " * 40} for n in range(6_000)]
    path = write(tmp_path / f"rows.{kind}", rows)
    del rows
    tracemalloc.start()
    count = sum(len(window) for window in stream_kind(path, "text", window=100))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 6_000
    assert peak < path.stat().st_size / 4
