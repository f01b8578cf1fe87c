"""The same rows from every format."""

import json
import sys

import pytest

from mlx_bert.data.analysis import analyze_dataset
from mlx_bert.data.readers import read_examples, read_kind
from mlx_bert.data.sources import read_rows, read_table, records

ROWS = [{"text": "a b", "label": "yes"}, {"text": "c", "label": "no"}]


@pytest.fixture(scope="module")
def dataset():
    """Two texts with a ClassLabel whose names are in no alphabetical order, words with a list of them."""
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    features = {"text": Value("string"), "label": ClassLabel(names=["yes", "no"])}
    features |= {"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=["O", "B-X", "I-X"]))}
    columns = {"text": ["a b", "c"], "label": [0, 1], "tokens": [["a", "b"], ["c"]], "ner_tags": [[1, 2], [0]]}
    return Dataset.from_dict(columns, Features(features))


@pytest.fixture(scope="module")
def sources(dataset, tmp_path_factory):
    """The rows in every format."""
    from datasets import DatasetDict

    folder = tmp_path_factory.mktemp("sources")
    (folder / "a.csv").write_text("text,label\na b,yes\nc,no\n")
    (folder / "a.tsv").write_text("text\tlabel\na b\tyes\nc\tno\n")
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "a.json").write_text(json.dumps(ROWS))
    (folder / "b.json").write_text(json.dumps({"version": 1, "data": ROWS}))
    dataset.to_parquet(folder / "a.parquet")
    dataset.save_to_disk(folder / "one")
    splits = DatasetDict({"train": dataset, "test": dataset.select([1])})
    splits.save_to_disk(folder / "splits")
    (folder / "files").mkdir()
    (folder / "files" / "train.jsonl").write_text((folder / "a.jsonl").read_text())
    (folder / "files" / "test.jsonl").write_text(json.dumps(ROWS[1]) + "\n")
    named = {name: folder / name for name in ("a.csv", "a.tsv", "a.jsonl", "a.json", "b.json", "a.parquet", "one")}
    named |= {name: f"{folder}/{name}" for name in ("splits@train", "files@train")}
    hub = f"hub:{folder / 'files'}@train"  # the library takes a folder where it takes a name
    return folder, {
        **named,
        "hub": hub,
        "Dataset": dataset,
        "DatasetDict": DatasetDict({"only": dataset}),
        "list": ROWS,
    }


NAMES = ("a.csv", "a.tsv", "a.jsonl", "a.json", "b.json", "a.parquet", "one", "splits@train", "files@train", "hub",
         "Dataset", "DatasetDict", "list")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_examples(sources, name):
    examples = read_examples(sources[1][name])
    assert [(e["text"], e["label"]) for e in examples] == [("a b", "yes"), ("c", "no")]
    named = name in ("a.parquet", "one", "splits@train", "Dataset", "DatasetDict")
    assert examples.classes == ({"label": ("yes", "no")} if named else {})
    assert analyze_dataset(sources[1][name], "label").classes == ["no", "yes"]


@pytest.mark.parametrize("name", ["a.parquet", "one", "Dataset"])
def test_lists_of_class_ids_become_names(sources, name):
    examples = read_kind(sources[1][name], "tagging")
    assert [e["tags"] for e in examples] == [["B-X", "I-X"], ["O"]]
    assert examples.classes == {"tags": ("O", "B-X", "I-X")}
    assert examples[0]["text"] == "a b"


def test_a_split_must_be_named_where_there_are_several(sources):
    folder, _ = sources
    assert len(read_table(f"{folder}/splits@test")) == 1
    with pytest.raises(ValueError, match=r"expected one split but .*splits has train, test\. Name one .*: @train"):
        read_table(folder / "splits")
    with pytest.raises(ValueError, match="expected a split 'dev' but"):
        read_table(f"{folder}/splits@dev")
    with pytest.raises(ValueError, match=r"expected a split 'dev' but .* is one data set"):
        read_table(f"{folder}/one@dev")
    with pytest.raises(ValueError, match=r"datasets cannot load .*files@dev"):
        read_table(f"{folder}/files@dev")


def test_a_hub_name_has_config_and_split(monkeypatch, dataset):
    import datasets

    asked = []

    def load(name, config=None, split=None):
        asked.append((name, config, split))
        return dataset if split else datasets.DatasetDict({"train": dataset, "test": dataset})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(read_table("hub:stanfordnlp/sst2@train")) == 2
    assert len(read_table("hub:nyu-mll/glue:mrpc@train[:10%]")) == 2
    with pytest.raises(ValueError, match="hub:imdb has train, test"):
        read_table("hub:imdb")
    assert asked == [
        ("stanfordnlp/sst2", None, "train"),
        ("nyu-mll/glue", "mrpc", "train[:10%]"),
        ("imdb", None, None),
    ]


def test_a_class_id_without_a_name_is_a_bad_row(dataset):
    unlabelled = dataset.map(lambda row: {"label": -1})
    with pytest.raises(ValueError, match="2 bad rows") as caught:
        read_examples(unlabelled)
    assert "row 1: expected class ids from 0 to 1 in 'label' but got -1" in str(caught.value)


def test_conll(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text(
        "-DOCSTART- -X- O O\n\n# sent_id = 1\nJohn NNP B-NP B-PER\nlives VBZ B-VP O\n\n"
        "in\tB-LOC\n\nParis IN O B-LOC\n\n\n"
    )
    examples = read_kind(path, "tagging")
    assert [(e["tokens"], e["tags"], e["line"]) for e in examples] == [
        (["John", "lives"], ["B-PER", "O"], 4),
        (["in"], ["B-LOC"], 7),
        (["Paris"], ["B-LOC"], 9),
    ]
    path.write_text("a O\nb\nc O\n\nd O\ne\n")
    with pytest.raises(ValueError, match="2 bad rows") as caught:
        read_kind(path, "tagging")
    assert "line 1: expected a token and its tag in line 2 but got 'b'" in str(caught.value)
    assert "line 5: expected a token and its tag in line 6 but got 'e'" in str(caught.value)


def test_nested_squad(tmp_path):
    context = "Cats sleep."
    questions = [
        {"id": "x", "question": "Who sleeps?", "answers": [{"text": "Cats", "answer_start": 0}]},
        {"id": "y", "question": "Who runs?", "answers": [], "is_impossible": True},
    ]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [{"context": context, "qas": questions}]}]}))
    examples = read_kind(path, "question_answering")
    assert examples[0] == {
        "line": 1, "question": "Who sleeps?", "context": context, "answers": {"text": ["Cats"], "answer_start": [0]},
        "id": "x",
    }  # fmt: skip
    assert examples[1]["answers"] == {"text": [], "answer_start": []}


def test_data_frames_and_what_is_no_list_of_rows():
    import pandas

    assert read_table(pandas.DataFrame(ROWS)) == ROWS
    assert read_examples(pandas.DataFrame(ROWS))[1]["label"] == "no"
    assert records(row for row in ROWS) == ROWS
    assert records(type("PolarsFrame", (), {"to_dicts": lambda self: ROWS})()) == ROWS
    with pytest.raises(ValueError, match=r"expected examples, a dict each, but got 'a.csv'. Read a file with"):
        records("a.csv")
    with pytest.raises(ValueError, match="but got a dict of text, label"):
        records({"text": ["a"], "label": [1]})


def test_what_cannot_be_read(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    with pytest.raises(FileNotFoundError, match=r"nowhere.csv does not exist. Give a file \(.csv"):
        read_rows(tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match=r"expected a file ending in .csv"):
        read_rows(write("a.xlsx", "x"))
    with pytest.raises(ValueError, match=r"is not valid JSON \(line 2: .*A file of a row a line is .jsonl"):
        read_rows(write("a.json", '{"a": 1}\n{"a": 2}'))
    with pytest.raises(ValueError, match="expected a list of objects in"):
        read_rows(write("a.json", '{"a": 1}'))
    with pytest.raises(ValueError, match="expected SQuAD's articles of paragraphs with qas in"):
        read_rows(write("a.json", '[{"paragraphs": [{"context": "a"}]}]'))
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        read_rows(write("a.parquet", "x"))


@pytest.mark.parametrize(
    ("library", "source", "extra"), [("pyarrow", "a.parquet", "parquet"), ("datasets", "hub:imdb", "datasets")]
)
def test_a_missing_library_names_its_extra(monkeypatch, tmp_path, library, source, extra):
    (tmp_path / "a.parquet").write_text("x")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf'pip install "mlx-bert\[{extra}\]"'):
        read_rows(source if source.startswith("hub:") else tmp_path / source)
